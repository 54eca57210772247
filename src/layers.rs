//! Holds the layers: a module uses only modules that stand before it in the code map of
//! `docs/ARCHITECTURE.md`, the parts of a folder do not use each other in a circle, and files stay short.
//! A folder's own `mod.rs` is no part of it: it names its parts, and they may use what it defines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const MAX_LINES: usize = 500;

/// A module by its path, such as `["hub", "fanout"]`.
type Module = Vec<String>;

/// Which modules each module uses.
struct Graph(BTreeMap<Module, BTreeSet<Module>>);

impl Graph {
    /// The modules in `files`, which are paths below `src` with their text.
    fn of(files: &[(String, String)]) -> Self {
        let sources: BTreeMap<Module, &str> =
            files.iter().map(|(path, text)| (module_of(path), text.as_str())).collect();
        let used = |module: &Module, text: &str| {
            let known = |mut path: Module| {
                while !path.is_empty() && !sources.contains_key(&path) {
                    path.pop();
                }
                path
            };
            paths(text, module).into_iter().map(known).filter(|used| !used.is_empty()).collect()
        };
        Self(sources.iter().map(|(module, text)| (module.clone(), used(module, text))).collect())
    }

    /// Arrows that run against `layers`, and modules that are not in it.
    fn violations(&self, layers: &[String]) -> Vec<String> {
        let layer = |module: &Module| layers.iter().position(|name| *name == module[0]);
        let mut wrong = Vec::new();
        for (module, used) in self.0.iter().filter(|(module, _)| !module.is_empty()) {
            let Some(own) = layer(module) else {
                wrong.push(format!("{} is not in the code map", module[0]));
                continue;
            };
            for other in used.iter().filter(|other| layer(other).is_some_and(|other| other > own)) {
                wrong.push(format!(
                    "{} uses {}, which is a higher layer",
                    module.join("::"),
                    other.join("::")
                ));
            }
        }
        wrong
    }

    /// The folders whose parts use each other in a circle, each with the parts in circles.
    fn circles(&self) -> BTreeMap<String, Vec<String>> {
        let folders: BTreeSet<&[String]> = self
            .0
            .keys()
            .filter(|module| module.len() > 1)
            .map(|module| &module[..module.len() - 1])
            .collect();
        let mut circles = BTreeMap::new();
        for folder in folders {
            let part = |module: &Module| module.strip_prefix(folder).and_then(|rest| rest.first()).cloned();
            let mut reached: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (module, used) in &self.0 {
                let Some(from) = part(module) else { continue };
                let others = used.iter().filter_map(part).filter(|to| *to != from);
                reached.entry(from.clone()).or_default().extend(others);
            }
            // Each round adds what is reached in one more step.
            for _ in 0..reached.len() {
                let before = reached.clone();
                for others in reached.values_mut() {
                    let further: Vec<_> = others.iter().flat_map(|other| &before[other]).cloned().collect();
                    others.extend(further);
                }
            }
            let circular: Vec<String> = reached
                .iter()
                .filter(|(name, others)| others.contains(*name))
                .map(|(name, _)| name.clone())
                .collect();
            if !circular.is_empty() {
                circles.insert(folder.join("::"), circular);
            }
        }
        circles
    }
}

fn module_of(path: &str) -> Module {
    let path = path.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').filter(|part| *part != "lib").map(str::to_owned).collect()
}

/// The paths that begin with `crate` or `super` in the code of `module`, its unit tests left out.
fn paths(text: &str, module: &Module) -> Vec<Module> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String =
        code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if !before.is_alphanumeric() && !"_:$".contains(before) {
                let mut paths = Vec::new();
                read_tree(&code[at..], &[], &mut paths);
                found.extend(paths.into_iter().map(|path| absolute(path, module)));
            }
        }
    }
    found
}

/// Reads one path, or a tree of them in braces. Returns how many bytes it took.
fn read_tree(text: &str, prefix: &[String], out: &mut Vec<Module>) -> usize {
    let (mut path, mut at) = (prefix.to_vec(), 0);
    loop {
        let name = text[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len() - at);
        path.extend((name > 0).then(|| text[at..at + name].to_owned()));
        at += name;
        if text[at..].starts_with("::") {
            at += 2;
        } else if text[at..].starts_with('{') {
            while !text[at..].starts_with('}') && at < text.len() {
                at += text[at + 1..]
                    .find(|c: char| !c.is_whitespace())
                    .map_or(text.len() - at, |skipped| skipped + 1);
                at += read_tree(&text[at..], &path, out);
                // The rest of the item, such as `as other`.
                at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
            }
            return at + 1;
        } else {
            out.push(path);
            return at;
        }
    }
}

fn absolute(path: Module, module: &Module) -> Module {
    let up = path.iter().take_while(|part| *part == "super").count();
    match up {
        0 => path[1..].to_vec(),
        _ => [&module[..module.len().saturating_sub(up)], &path[up..]].concat(),
    }
}

/// The modules of the code map in their order: the names in the first column of its table.
fn layers(architecture: &str) -> Vec<String> {
    let map = architecture.split("## Code map").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = map.unwrap_or_default().lines().filter(|line| line.starts_with("| `"));
    let names = |row: &str| -> Vec<String> {
        let first = row.split('|').nth(1).unwrap_or_default();
        first.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    rows.flat_map(names).collect()
}

/// The Rust files below `folder`, as paths relative to it, with their text.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The code without its tests, and without the two programs.
fn graph() -> Graph {
    let mut files = sources(&root().join("src"));
    files.retain(|(path, _)| {
        let is_test = path.split('/').any(|part| part == "tests" || part == "tests.rs");
        !is_test && path != "main.rs" && path != "layers.rs"
    });
    Graph::of(&files)
}

fn code_map() -> Vec<String> {
    layers(&fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap())
}

#[test]
fn no_module_uses_a_higher_layer() {
    let wrong = graph().violations(&code_map());
    assert!(wrong.is_empty(), "see the code map of docs/ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn the_parts_of_a_folder_do_not_use_each_other_in_a_circle() {
    let mut circles = vec![graph().circles()];
    for package in ["loadtest/src", "loadtest/checker/src", "crates/testkit/src"] {
        circles.push(Graph::of(&sources(&root().join(package))).circles());
    }
    assert!(circles.iter().all(BTreeMap::is_empty), "{circles:#?}");
}

#[test]
fn files_are_short() {
    for folder in ["src", "loadtest", "crates"] {
        for (path, text) in sources(&root().join(folder)) {
            let lines = text.lines().count();
            assert!(
                lines <= MAX_LINES,
                "{folder}/{path} has {lines} lines; split it by what its parts are about"
            );
        }
    }
}

fn planted(files: &[(&str, &str)]) -> Graph {
    Graph::of(&files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect::<Vec<_>>())
}

#[test]
fn a_planted_use_of_a_higher_layer_is_found() {
    let map = "## Code map\n| Module |\n|---|\n| `domain` | x `http` |\n| `store`, `hub` | y |\n\n## Next\n| `app` |";
    let layers = layers(map);
    assert_eq!(layers, ["domain", "store", "hub"]);
    let store =
        |text| planted(&[("store/mod.rs", text), ("hub/mod.rs", ""), ("domain.rs", "")]).violations(&layers);
    for fine in ["use crate::domain::X;", "// use crate::hub::X;", "use super::domain;", "use mycrate::hub;"]
    {
        assert_eq!(store(fine), [""; 0], "{fine}");
    }
    for bad in [
        "use crate::hub::X;",
        "pub(crate) use crate::{\n    domain as d,\n    hub::{A, b::C},\n};",
        "fn f() { crate::hub::g() }",
        "use super::hub as h;",
    ] {
        assert_eq!(store(bad), ["store uses hub, which is a higher layer"], "{bad}");
    }
    assert_eq!(planted(&[("new.rs", "")]).violations(&layers), ["new is not in the code map"]);
}

#[test]
fn a_planted_circle_is_found() {
    let folder = |a: &str, b: &str| {
        planted(&[
            ("x/mod.rs", "mod a; mod b; mod c;"),
            ("x/a.rs", a),
            ("x/b/mod.rs", "mod d;"),
            ("x/b/d.rs", b),
        ])
        .circles()
    };
    assert!(folder("use super::b::d::D;", "use super::super::T;").is_empty());
    assert_eq!(folder("use super::b::D;", "use crate::x::a::A;")["x"], ["a", "b"]);
    assert_eq!(folder("use crate::x::{T, b::d::D};", "use super::super::a;")["x"], ["a", "b"]);
}
