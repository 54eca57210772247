//! Entry points: what others import by the name of a package, found as TypeScript does with `moduleResolution`
//! `bundler`. A file that is not there, because a build makes it, is replaced by its source.

use nodejs_semver::{Range, Version};

use crate::manifest::{Json, Manifest};
use crate::packages::Package;
use crate::path::{in_folder, join, split_code, typed, within};
use crate::sources::{SOURCE, Sources, with_extension};
use crate::tree::Tree;

/// The version of TypeScript whose `typesVersions` and `types@…` count.
const TYPESCRIPT: (u64, u64, u64) = (5, 9, 0);
/// Conditions that hold, besides those for a range of versions; the second set is for what nothing fits otherwise.
const CONDITIONS: [[&str; 3]; 2] = [["types", "import", "default"], ["types", "require", "default"]];

/// Where others get into a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPoint {
    /// What follows the name of the package, as in `exports`: `.` or `./…`.
    pub subpath: String,
    /// Relative to the tree.
    pub file: String,
}

/// All of a package.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// In the order of `exports`, those of a pattern by name.
    pub points: Vec<EntryPoint>,
    /// Subpaths that should lead to code, and why they do not.
    pub skipped: Vec<(String, String)>,
}

impl Entries {
    /// Finds those of `package`.
    pub fn of(tree: &Tree, package: &Package) -> Self {
        let Package { folder, manifest } = package;
        let finder = Finder { tree, folder, manifest, sources: Sources::of(tree, folder) };
        let mut entries = Self::default();
        match manifest.field("exports") {
            None | Some(Json::Null) => entries.add(".", finder.without_exports()),
            Some(Json::Object(fields)) if fields.iter().any(|(key, _)| key.starts_with('.')) => {
                for (key, target) in fields {
                    entries.add_subpath(&finder, fields, key, target);
                }
            }
            Some(target) => entries.add(".", finder.resolve(".", target, None)),
        }
        entries
    }

    fn add(&mut self, subpath: &str, file: Option<String>) {
        let subpath = subpath.to_owned();
        match file {
            Some(file) => self.points.push(EntryPoint { subpath, file }),
            None => self.skipped.push((subpath, "no source of it was found".to_owned())),
        }
    }

    fn add_subpath(&mut self, finder: &Finder<'_>, fields: &[(String, Json)], key: &str, target: &Json) {
        if !key.starts_with('.') {
            self.skipped.push((key.to_owned(), "`exports` has subpaths, and this is none".to_owned()));
            return;
        }
        let names_code = leaves(target)
            .iter()
            .any(|path| path.contains('*') || path.ends_with('/') || split_code(path).is_some());
        if !names_code {
            return;
        }
        let Some(pattern) = Pattern::of_key(key) else {
            return self.add(key, finder.resolve(key, target, None));
        };
        let before = self.points.len();
        for star in finder.stars(target) {
            let subpath = pattern.with(&star);
            let is_ours = best_key(fields, &subpath) == Some(key);
            if let Some(file) = finder.resolve(&subpath, target, Some(&star)).filter(|_| is_ours) {
                self.points.push(EntryPoint { subpath, file });
            }
        }
        if self.points.len() == before {
            self.skipped.push((key.to_owned(), "no file was found for this pattern".to_owned()));
        }
    }
}

/// A text with one place that stands for anything.
struct Pattern<'p> {
    before: &'p str,
    after: &'p str,
}

impl<'p> Pattern<'p> {
    /// A key of `exports`; one that ends in `/` is an old way to write a pattern.
    fn of_key(key: &'p str) -> Option<Self> {
        match key.split_once('*') {
            Some((before, after)) => Some(Self { before, after }),
            None => key.ends_with('/').then_some(Self { before: key, after: "" }),
        }
    }

    fn with(&self, star: &str) -> String {
        format!("{}{star}{}", self.before, self.after)
    }

    /// What the place stands for in `text`.
    fn star_of<'t>(&self, text: &'t str) -> Option<&'t str> {
        let star = text.strip_prefix(self.before)?.strip_suffix(self.after)?;
        (!star.is_empty()).then_some(star)
    }
}

/// The key that decides about a subpath: itself, or the pattern that says most of it (Node.js, PATTERN_KEY_COMPARE).
fn best_key<'f>(fields: &'f [(String, Json)], subpath: &str) -> Option<&'f str> {
    let keys = || fields.iter().map(|(key, _)| key.as_str());
    if let Some(same) = keys().find(|key| *key == subpath && !key.contains('*')) {
        return Some(same);
    }
    let fits = |key: &&str| Pattern::of_key(key).is_some_and(|pattern| pattern.star_of(subpath).is_some());
    keys()
        .filter(fits)
        .max_by_key(|key| (Pattern::of_key(key).map(|pattern| pattern.before.len()), key.len()))
}

/// All paths in a target, whatever their conditions.
fn leaves(target: &Json) -> Vec<&str> {
    match target {
        Json::Text(path) => vec![path],
        Json::List(targets) => targets.iter().flat_map(leaves).collect(),
        Json::Object(targets) => targets.iter().flat_map(|(_, target)| leaves(target)).collect(),
        Json::Null | Json::Bool(_) | Json::Number => Vec::new(),
    }
}

/// Finds the file that a path of the package leads to.
type Find<'f> = &'f dyn Fn(&str) -> Option<String>;

struct Finder<'a> {
    tree: &'a Tree,
    folder: &'a str,
    manifest: &'a Manifest,
    sources: Sources,
}

impl Finder<'_> {
    /// The file of a subpath: one that is there under any conditions, or else a source.
    fn resolve(&self, subpath: &str, target: &Json, star: Option<&str>) -> Option<String> {
        let there = |path: &str| self.there(path);
        let source = |path: &str| self.source(subpath, path);
        let finds: [Find<'_>; 2] = [&there, &source];
        let ways = finds.into_iter().flat_map(|find| CONDITIONS.map(|conditions| (find, conditions)));
        let found = ways.into_iter().find_map(|(find, conditions)| follow(target, star, &conditions, find));
        found.or_else(|| (subpath == ".").then(|| self.index()).flatten())
    }

    /// `path` of the package as a path of the tree.
    fn in_package(&self, path: &str) -> Option<String> {
        let path = join(self.folder, path)?;
        within(&path, self.folder).is_some().then_some(path)
    }

    /// A file of code that is there; beside JavaScript its types win.
    fn there(&self, path: &str) -> Option<String> {
        let path = self.in_package(path)?;
        let (stem, extension) = split_code(&path)?;
        let beside = typed(extension).iter().map(|extension| format!("{stem}{extension}"));
        beside.chain([path.clone()]).find(|path| self.tree.is_file(path))
    }

    /// The source of a file of code that is not there.
    fn source(&self, subpath: &str, path: &str) -> Option<String> {
        let path = self.in_package(path)?;
        split_code(&path)?;
        let own = (subpath == ".").then(|| self.there(self.manifest.text("source")?)).flatten();
        own.or_else(|| self.sources.find(self.tree, &path))
    }

    /// Where a package begins that does not say it, or whose files have no source that can be told.
    fn index(&self) -> Option<String> {
        ["src/index", "index"].iter().find_map(|stem| with_extension(self.tree, &self.in_package(stem)?))
    }

    /// What a pattern stands for in the files that are there, or else in the sources.
    fn stars(&self, target: &Json) -> Vec<String> {
        let inside = leaves(target).into_iter().filter_map(|leaf| leaf.strip_prefix("./"));
        let patterns: Vec<String> = inside.filter_map(|leaf| self.pattern_of(leaf)).collect();
        let mut stars = Vec::new();
        patterns.iter().for_each(|pattern| self.add_stars(pattern, false, &mut stars));
        if stars.is_empty() {
            let places = patterns.iter().flat_map(|pattern| self.sources.places(pattern));
            places.for_each(|place| self.add_stars(&place, true, &mut stars));
        }
        stars.sort_unstable();
        stars.dedup();
        stars
    }

    fn pattern_of(&self, leaf: &str) -> Option<String> {
        let leaf = if leaf.ends_with('/') { format!("{leaf}*") } else { leaf.to_owned() };
        if leaf.contains('*') { self.in_package(&leaf) } else { None }
    }

    fn add_stars(&self, leaf: &str, of_sources: bool, stars: &mut Vec<String>) {
        let Some((before, after)) = leaf.split_once('*') else { return };
        // The place may be there several times, and stands for the same each time.
        let after = after.rsplit_once('*').map_or(after, |(_, after)| after);
        let pattern = Pattern { before, after };
        let folder = before.rsplit_once('/').map_or("", |(folder, _)| folder);
        for file in self.tree.files_under(folder).files {
            if of_sources && is_test(&file) {
                continue;
            }
            let names = names_of(&file, of_sources);
            let fits = names.iter().filter_map(|name| {
                let star = match leaf.matches('*').count() {
                    1 => pattern.star_of(name)?,
                    count => repeated(leaf, name, count)?,
                };
                Some(star.to_owned())
            });
            stars.extend(fits);
        }
    }

    /// What a package without `exports` is: its only entry point.
    fn without_exports(&self) -> Option<String> {
        let fields = ["types", "typings", "main", "module"].map(|field| self.manifest.text(field));
        let named: Vec<&str> = fields.into_iter().flatten().collect();
        let with_versions = || {
            let first = named.first().copied().unwrap_or("index");
            self.of_version(first).into_iter().flatten().find_map(|path| self.file_or_folder(&path))
        };
        let there = || named.iter().find_map(|path| self.file_or_folder(path));
        let source = || named.iter().find_map(|path| self.source_of_field(path));
        let found = with_versions().or_else(there).or_else(|| self.file_or_folder("index"));
        found.or_else(source).or_else(|| self.index())
    }

    /// What `typesVersions` has instead of `path`.
    fn of_version(&self, path: &str) -> Option<Vec<String>> {
        let Json::Object(versions) = self.manifest.field("typesVersions")? else { return None };
        let (_, paths) = versions.iter().find(|(range, _)| is_typescript_in(range))?;
        let Json::Object(paths) = paths else { return None };
        let path = path.strip_prefix("./").unwrap_or(path);
        let star_of = |key: &str| match key.split_once('*') {
            Some((before, after)) => Pattern { before, after }.star_of(path).map(str::to_owned),
            None => (key == path).then(String::new),
        };
        let fitting = paths.iter().filter_map(|(key, targets)| Some((key, star_of(key)?, targets)));
        let order = |key: &str| key.split_once('*').map_or(usize::MAX, |(before, _)| before.len());
        let (_, star, targets) = fitting.max_by_key(|(key, ..)| order(key))?;
        Some(leaves(targets).into_iter().map(|target| target.replacen('*', &star, 1)).collect())
    }

    /// A file as `main` names it: perhaps without its extension, perhaps a folder.
    fn file_or_folder(&self, path: &str) -> Option<String> {
        const THERE: [&str; 9] = [".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mts", ".d.mts", ".mjs", ".cjs"];
        if let Some(file) = self.there(path) {
            return Some(file);
        }
        let stem = self.in_package(path)?;
        let index = in_folder(&stem, "index");
        [stem, index].iter().filter(|stem| !stem.is_empty()).find_map(|stem| {
            THERE.iter().map(|extension| format!("{stem}{extension}")).find(|path| self.tree.is_file(path))
        })
    }

    fn source_of_field(&self, path: &str) -> Option<String> {
        let own = self.manifest.text("source").and_then(|path| self.there(path));
        own.or_else(|| self.sources.find(self.tree, &self.in_package(path)?))
    }
}

/// Follows the conditions of a target to the first file that `find` finds.
fn follow(target: &Json, star: Option<&str>, conditions: &[&str], find: Find<'_>) -> Option<String> {
    match target {
        Json::Text(path) if path.starts_with("./") => match star {
            Some(star) if path.ends_with('/') => find(&format!("{path}{star}")),
            Some(star) => find(&path.replace('*', star)),
            None => find(path),
        },
        Json::List(targets) => targets.iter().find_map(|target| follow(target, star, conditions, find)),
        Json::Object(targets) => {
            let holds = |condition: &str| {
                conditions.contains(&condition)
                    || condition.strip_prefix("types@").is_some_and(is_typescript_in)
            };
            let holding = targets.iter().filter(|(condition, _)| holds(condition));
            holding.into_iter().find_map(|(_, target)| follow(target, star, conditions, find))
        }
        _ => None,
    }
}

fn is_typescript_in(range: &str) -> bool {
    Range::parse(range).is_ok_and(|range| range.satisfies(&Version::from(TYPESCRIPT)))
}

/// The names under which a file may be exported: its own, and those of what a build makes of it.
fn names_of(file: &str, is_source: bool) -> Vec<String> {
    let Some((stem, extension)) = split_code(file) else { return Vec::new() };
    let built: &[&str] = match extension {
        _ if is_source && SOURCE.contains(&extension) => {
            &[".js", ".mjs", ".cjs", ".d.ts", ".d.mts", ".d.cts"]
        }
        ".ts" | ".d.ts" => &[".js"],
        ".tsx" => &[".js", ".jsx"],
        ".mts" | ".d.mts" => &[".mjs"],
        ".cts" | ".d.cts" => &[".cjs"],
        _ => &[],
    };
    let built = built.iter().map(|extension| format!("{stem}{extension}"));
    let itself = (!is_source).then(|| file.to_owned());
    itself.into_iter().chain(built).collect()
}

/// What stands `count` times in `name` where `leaf` has its places.
fn repeated<'n>(leaf: &str, name: &'n str, count: usize) -> Option<&'n str> {
    let rest = name.len().checked_sub(leaf.len() - count)?;
    let (begin, length) = (leaf.find('*')?, rest / count);
    let star = name.get(begin..begin + length).filter(|star| !star.is_empty())?;
    (leaf.replace('*', star) == name).then_some(star)
}

/// Tests lie beside sources, and no build publishes them.
fn is_test(file: &str) -> bool {
    let in_folder = file.split('/').any(|part| matches!(part, "__tests__" | "__mocks__"));
    in_folder || file.contains(".test.") || file.contains(".spec.")
}

#[cfg(test)]
mod tests;
