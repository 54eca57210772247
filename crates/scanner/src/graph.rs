//! The names that modules export, as TypeScript's `getExportsOfModule` has them: re-exports are followed from
//! module to module. Always by lists of what is left to do, never by recursion: chains may be long.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::module::{ASSIGNED, DEFAULT, Export, Kind, Module, Target};
use crate::packages::Packages;
use crate::resolve::{Resolved, Resolver, package_name};
use crate::tree::Tree;

/// So many different things under one name are remembered; two are too many already.
const MOST_ORIGINS: usize = 4;

/// An exported name, where it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// `None` if it is not known what it is.
    pub kind: Option<Kind>,
    /// Relative to the tree.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// The package that it is of, if that is another one.
    pub external: Option<String>,
}

/// The names of a module.
#[derive(Debug, Default)]
pub struct Names {
    pub found: BTreeMap<String, Name>,
    /// Names that stand for several things, and why they are left out.
    pub skipped: Vec<(String, String)>,
}

/// Modules, and what leads from one to the other.
#[derive(Debug, Default)]
pub struct Graph {
    modules: HashMap<String, Linked>,
    /// Files and specifiers that could not be followed, and why.
    pub skipped: Vec<(String, String)>,
}

#[derive(Debug)]
struct Linked {
    module: Module,
    /// What its specifiers name, as far as an export needs them.
    links: HashMap<String, Link>,
    /// Its names with the modules and names under which they are exported first.
    names: BTreeMap<String, Vec<Origin>>,
}

#[derive(Debug, Clone)]
struct Link {
    resolved: Resolved,
    /// The name of the package, if the specifier names one.
    package: Option<String>,
}

/// Where a name is exported first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    file: String,
    name: String,
    /// The first other package through which `export *` leads there.
    package: Option<String>,
}

/// What a name stands for in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Symbol {
    /// A declaration of a file.
    Declared(String, String),
    /// What an export of a file gives a name to, which has none.
    Unnamed(String, String),
    /// All of a module.
    Module(String),
    /// Something of a package that is not in the tree.
    External(String),
}

impl Graph {
    /// Reads `files` and all modules that their exports lead to.
    pub fn of<'f>(tree: &Tree, packages: &Packages, files: impl IntoIterator<Item = &'f str>) -> Self {
        let mut graph = Self::default();
        let mut resolver = Resolver::new(tree, packages);
        let mut waiting: VecDeque<String> = files.into_iter().map(str::to_owned).collect();
        let mut known: HashSet<String> = waiting.iter().cloned().collect();
        while let Some(file) = waiting.pop_front() {
            let text = tree.read(&file).map_err(|error| error.to_string());
            let parsed = text.and_then(|text| Module::parse(&file, &text).map_err(|error| error.to_string()));
            let mut module = match parsed {
                Ok(module) => module,
                Err(reason) => {
                    graph.skipped.push((file, reason));
                    continue;
                }
            };
            if let Some(reason) = module.broken.take() {
                graph.skipped.push((file.clone(), format!("it does not parse everywhere: {reason}")));
            }
            add_members_of_assigned(&mut module);
            let links = graph.follow(&file, &module, &mut resolver);
            for link in links.values() {
                if let Resolved::File(next) = &link.resolved
                    && known.insert(next.clone())
                {
                    waiting.push_back(next.clone());
                }
            }
            let own = module.exports.keys();
            let origin = |name: &String| Origin { file: file.clone(), name: name.clone(), package: None };
            let names = own.map(|name| (name.clone(), vec![origin(name)])).collect();
            graph.modules.insert(file, Linked { module, links, names });
        }
        graph.pass_on();
        graph
    }

    /// The names of a module, which is one of those that were read.
    pub fn names_of(&self, file: &str) -> Names {
        let mut names = Names::default();
        let Some(linked) = self.modules.get(file) else { return names };
        for (name, origins) in &linked.names {
            let mut all: Vec<(Option<Symbol>, Option<String>)> = Vec::new();
            for origin in origins {
                let found = self.symbol(origin);
                if !all.iter().any(|(symbol, _)| *symbol == found.0) {
                    all.push(found);
                }
            }
            if all.len() > 1 {
                let why = "several modules export different things under this name".to_owned();
                names.skipped.push((name.clone(), why));
            } else if let Some((symbol, external)) = all.pop() {
                names.found.insert(name.clone(), self.name(symbol, external, &origins[0]));
            }
        }
        names
    }

    /// Resolves what the exports of a module need.
    fn follow(&mut self, file: &str, module: &Module, resolver: &mut Resolver<'_>) -> HashMap<String, Link> {
        let targets = module.exports.values().map(|export| &export.target);
        let mut needed: Vec<&str> = module.stars.iter().map(String::as_str).collect();
        needed.extend(targets.chain(module.imports.values()).filter_map(|target| match target {
            Target::Of { specifier, .. } | Target::All { specifier } => Some(specifier.as_str()),
            Target::Local(_) | Target::Unnamed(_) => None,
        }));
        let mut links = HashMap::new();
        for specifier in needed {
            if links.contains_key(specifier) {
                continue;
            }
            let resolved = resolver.resolve(file, specifier);
            let is_star = module.stars.iter().any(|star| star == specifier);
            match &resolved {
                Resolved::External(_) if is_star => {
                    self.skipped.push((specifier.to_owned(), "this package is not in the tree".to_owned()));
                }
                Resolved::Missing => {
                    self.skipped
                        .push((specifier.to_owned(), format!("{file} names it, and it was not found")));
                }
                _ => {}
            }
            let package = (!specifier.starts_with('.')).then(|| package_name(specifier).to_owned());
            links.insert(specifier.to_owned(), Link { resolved, package });
        }
        links
    }

    /// Passes names on along `export *`, until nothing changes any more.
    fn pass_on(&mut self) {
        let mut readers: HashMap<String, Vec<(String, Option<String>)>> = HashMap::new();
        for (file, linked) in &self.modules {
            for star in &linked.module.stars {
                if let Some(Link { resolved: Resolved::File(of), package }) = linked.links.get(star) {
                    readers.entry(of.clone()).or_default().push((file.clone(), package.clone()));
                }
            }
        }
        let mut files: Vec<String> = self.modules.keys().cloned().collect();
        files.sort_unstable();
        let mut waiting: VecDeque<String> = files.into();
        let mut queued: HashSet<String> = waiting.iter().cloned().collect();
        while let Some(file) = waiting.pop_front() {
            queued.remove(&file);
            let Some(passed) = self.modules.get(&file).map(|linked| linked.names.clone()) else { continue };
            for (reader, package) in readers.get(&file).into_iter().flatten() {
                let Some(linked) = self.modules.get_mut(reader) else { continue };
                if linked.take_over(&passed, package.as_ref()) && queued.insert(reader.clone()) {
                    waiting.push_back(reader.clone());
                }
            }
        }
    }

    /// What an export stands for, and the first other package on the way there.
    fn symbol(&self, origin: &Origin) -> (Option<Symbol>, Option<String>) {
        let mut external = origin.package.clone();
        let (mut file, mut look) = (origin.file.clone(), Look::Export(origin.name.clone()));
        let mut seen = HashSet::new();
        while seen.insert((file.clone(), look.clone())) {
            let Some(linked) = self.modules.get(&file) else { return (None, external) };
            let target = match &look {
                Look::Export(name) => match linked.export(name) {
                    Some(first) if first.file != file => {
                        external = external.or_else(|| first.package.clone());
                        (file, look) = (first.file.clone(), Look::Export(first.name.clone()));
                        continue;
                    }
                    Some(Origin { name, .. }) => match &linked.module.exports[name].target {
                        Target::Unnamed(_) => return (Some(Symbol::Unnamed(file, name.clone())), external),
                        target => (target.clone(), None),
                    },
                    None => return (None, external),
                },
                Look::Local(path) => {
                    if linked.module.declared.contains_key(path) {
                        return (Some(Symbol::Declared(file.clone(), path.clone())), external);
                    }
                    match linked.imported(path) {
                        Some((target, rest)) => (target.clone(), rest.map(str::to_owned)),
                        None => return (None, external),
                    }
                }
            };
            let (target, rest) = target;
            let (specifier, name) = match target {
                Target::Local(path) => {
                    look = Look::Local(with_rest(path, rest));
                    continue;
                }
                Target::Unnamed(_) => return (None, external),
                Target::Of { specifier, name } => (specifier, Some(name)),
                Target::All { specifier } => (specifier, None),
            };
            let Some(link) = linked.links.get(&specifier) else { return (None, external) };
            external = external.or_else(|| link.package.clone());
            let next = match &link.resolved {
                Resolved::File(next) => next.clone(),
                Resolved::External(package) => return (Some(Symbol::External(package.clone())), external),
                Resolved::Missing => return (None, external),
            };
            look = match (name, rest) {
                (Some(name), None) if name == ASSIGNED && !self.exports(&next, ASSIGNED) => {
                    return (Some(Symbol::Module(next)), external);
                }
                (Some(name), None) => Look::Export(name),
                (None, None) => return (Some(Symbol::Module(next)), external),
                (None, Some(rest)) => Look::Export(rest),
                // A member of something that another module declares.
                (Some(name), Some(rest)) => match self.declared_there(&next, &name, &rest) {
                    Some(symbol) => return (Some(symbol), external),
                    None => return (None, external),
                },
            };
            file = next;
        }
        (None, external)
    }

    fn declared_there(&self, file: &str, name: &str, rest: &str) -> Option<Symbol> {
        let Export { target: Target::Local(local), .. } = self.modules.get(file)?.module.exports.get(name)?
        else {
            return None;
        };
        Some(Symbol::Declared(file.to_owned(), format!("{local}.{rest}")))
    }

    fn exports(&self, file: &str, name: &str) -> bool {
        self.modules.get(file).is_some_and(|linked| linked.names.contains_key(name))
    }

    fn name(&self, symbol: Option<Symbol>, external: Option<String>, origin: &Origin) -> Name {
        let Origin { file, name: export, .. } = origin;
        let line = self
            .modules
            .get(file)
            .and_then(|linked| linked.module.exports.get(export))
            .map_or(1, |it| it.line);
        let here = |kind| Name { kind, file: file.clone(), line, external: external.clone() };
        match symbol {
            None => here(None),
            Some(Symbol::External(package)) => Name { external: Some(package), ..here(None) },
            Some(Symbol::Module(_)) => here(Some(Kind::Namespace)),
            Some(Symbol::Unnamed(file, name)) => {
                let Export { target, line, .. } = &self.modules[&file].module.exports[&name];
                let kind = if let Target::Unnamed(declared) = target { Some(declared.kind) } else { None };
                Name { kind, line: *line, file, external }
            }
            Some(Symbol::Declared(file, name)) => {
                let declared =
                    self.modules.get(&file).and_then(|linked| linked.module.main_declaration(&name));
                match declared {
                    Some(declared) => Name { kind: Some(declared.kind), line: declared.line, file, external },
                    None => here(None),
                }
            }
        }
    }
}

/// What is looked for in a module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Look {
    Export(String),
    /// A name of its own, with dots where namespaces are entered.
    Local(String),
}

impl Linked {
    /// Adds what another module, perhaps of another package, passes on. Whether there was anything new.
    fn take_over(&mut self, passed: &BTreeMap<String, Vec<Origin>>, package: Option<&String>) -> bool {
        let mut changed = false;
        for (name, origins) in passed {
            // Neither a default nor what `export =` assigns is passed on.
            if name == DEFAULT || name == ASSIGNED || self.module.exports.contains_key(name) {
                continue;
            }
            let known = self.names.entry(name.clone()).or_default();
            for origin in origins {
                let is_known = known.iter().any(|it| (&it.file, &it.name) == (&origin.file, &origin.name));
                if known.len() < MOST_ORIGINS && !is_known {
                    let package = package.or(origin.package.as_ref()).cloned();
                    known.push(Origin { package, ..origin.clone() });
                    changed = true;
                }
            }
        }
        changed
    }

    /// Where a name is exported first. The default of a module with `export =` is that.
    fn export(&self, name: &str) -> Option<&Origin> {
        let found = self.names.get(name).or_else(|| self.names.get(ASSIGNED).filter(|_| name == DEFAULT));
        found?.first()
    }

    /// What an imported name stands for, and what follows it in a path.
    fn imported<'p>(&self, path: &'p str) -> Option<(&Target, Option<&'p str>)> {
        if let Some(target) = self.module.imports.get(path) {
            return Some((target, None));
        }
        let (head, rest) = path.split_once('.')?;
        self.module.imports.get(head).map(|target| (target, Some(rest)))
    }
}

fn with_rest(path: String, rest: Option<String>) -> String {
    match rest {
        Some(rest) => format!("{path}.{rest}"),
        None => path,
    }
}

/// What `export =` assigns gives the module the members of its namespace.
fn add_members_of_assigned(module: &mut Module) {
    let Some(Export { target: Target::Local(name), line, .. }) = module.exports.get(ASSIGNED).cloned() else {
        return;
    };
    for member in module.members.get(&name).cloned().unwrap_or_default() {
        let target = Target::Local(format!("{name}.{member}"));
        module.exports.entry(member).or_insert(Export { target, line, doc: None });
    }
}

#[cfg(test)]
mod tests;
