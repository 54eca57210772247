//! Which file a specifier names, as TypeScript finds it with `moduleResolution` `bundler`, inside the tree.

use std::collections::HashMap;

use crate::entries::Entries;
use crate::manifest::Manifest;
use crate::packages::{Package, Packages};
use crate::path::{in_folder, join, parent, split_code, typed, within};
use crate::tree::Tree;

/// What a specifier names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// A file of the tree.
    File(String),
    /// Another package, or a part of the platform, that is not in the tree.
    External(String),
    /// Nothing that is there.
    Missing,
}

/// Finds files. Remembers the entry points of packages.
pub struct Resolver<'t> {
    tree: &'t Tree,
    /// Folders of the packages of the tree, by name.
    neighbours: HashMap<String, Package>,
    entries: HashMap<String, Entries>,
}

impl<'t> Resolver<'t> {
    pub fn new(tree: &'t Tree, packages: &Packages) -> Self {
        let named = packages
            .found
            .iter()
            .filter_map(|package| Some((package.manifest.name()?.to_owned(), package.clone())));
        Self { tree, neighbours: named.collect(), entries: HashMap::new() }
    }

    /// What `specifier` names in `file`.
    pub fn resolve(&mut self, file: &str, specifier: &str) -> Resolved {
        if specifier.starts_with('.') {
            let found = join(parent(file), specifier).and_then(|path| self.file(&path));
            return found.map_or(Resolved::Missing, Resolved::File);
        }
        let external = || Resolved::External(package_name(specifier).to_owned());
        if specifier.starts_with('/') || specifier.contains(':') {
            return external();
        }
        let name = package_name(specifier);
        let subpath = match specifier.strip_prefix(name) {
            Some("") | None => ".".to_owned(),
            Some(rest) => format!(".{rest}"),
        };
        let Some(package) = self.package(file, name) else { return external() };
        let tree = self.tree;
        let entries =
            self.entries.entry(package.folder.clone()).or_insert_with(|| Entries::of(tree, &package));
        let point = entries.points.iter().find(|point| point.subpath == subpath);
        if let Some(point) = point {
            return Resolved::File(point.file.clone());
        }
        // Without `exports` every file of a package can be named.
        let open = package.manifest.field("exports").is_none();
        let inside = open.then(|| join(&package.folder, &subpath)).flatten();
        inside.and_then(|path| self.file(&path)).map_or(Resolved::Missing, Resolved::File)
    }

    /// The package that `name` means in `file`: a neighbour, or one in `node_modules` above.
    fn package(&self, file: &str, name: &str) -> Option<Package> {
        if let Some(package) = self.neighbours.get(name) {
            return Some(package.clone());
        }
        let mut folder = parent(file);
        loop {
            for inside in [name.to_owned(), types_of(name)] {
                let found = join(folder, &format!("node_modules/{inside}"));
                if let Some(found) = found.filter(|found| within(found, folder).is_some())
                    && let Ok(manifest) = Manifest::read(self.tree, &found)
                {
                    return Some(Package { folder: found, manifest });
                }
            }
            if folder.is_empty() {
                return None;
            }
            folder = parent(folder);
        }
    }

    /// The file at `path`, perhaps with another extension, or the index of a folder.
    fn file(&self, path: &str) -> Option<String> {
        const ADDED: [&str; 10] =
            [".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mts", ".d.mts", ".mjs", ".cts", ".cjs"];
        let replaced: &[&str] = match split_code(path) {
            // The file itself is among them.
            Some((_, ".ts")) => typed(".js"),
            Some((_, ".tsx")) => typed(".jsx"),
            Some((_, ".mts")) => typed(".mjs"),
            Some((_, ".cts")) => typed(".cjs"),
            Some((_, extension)) => typed(extension),
            None => &[],
        };
        let stem = split_code(path).map_or(path, |(stem, _)| stem);
        let replaced = replaced.iter().map(|extension| format!("{stem}{extension}"));
        let itself = split_code(path).map(|_| path.to_owned());
        let added = ADDED.iter().map(|extension| format!("{path}{extension}"));
        let index = in_folder(path, "index");
        let index = ADDED.iter().map(|extension| format!("{index}{extension}"));
        let named = replaced.chain(itself).chain(added.filter(|_| !path.is_empty()));
        named.chain(index).find(|path| self.tree.is_file(path))
    }
}

/// The name of the package in a specifier: its first part, or the first two.
pub(crate) fn package_name(specifier: &str) -> &str {
    let parts = if specifier.starts_with('@') { 2 } else { 1 };
    let end = specifier.match_indices('/').nth(parts - 1).map(|(at, _)| at);
    &specifier[..end.unwrap_or(specifier.len())]
}

/// The package with the types of another one.
fn types_of(name: &str) -> String {
    format!("@types/{}", name.trim_start_matches('@').replace('/', "__"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tree;

    #[test]
    fn files_are_found_beside_and_in_folders() {
        let (_folder, tree) = tree(&[
            ("package.json", "{}"),
            ("src/a.ts", ""),
            ("src/b/index.tsx", ""),
            ("src/c.js", ""),
            ("src/c.d.ts", ""),
            ("src/d.mts", ""),
            ("src/e.json", ""),
            ("dist/f.d.ts", ""),
        ]);
        let packages = Packages::of(&tree).expect("a package");
        let mut resolver = Resolver::new(&tree, &packages);
        for (specifier, found) in [
            ("./a", Some("src/a.ts")),
            ("./a.js", Some("src/a.ts")),
            ("./a.ts", Some("src/a.ts")),
            ("./b", Some("src/b/index.tsx")),
            ("./b/index.js", Some("src/b/index.tsx")),
            ("./c.js", Some("src/c.d.ts")),
            ("./d.mjs", Some("src/d.mts")),
            ("../src/./b/../a", Some("src/a.ts")),
            ("../dist/f.ts", Some("dist/f.d.ts")),
            ("./e.json", None),
            ("../../a", None),
            (".", None),
        ] {
            let found = found.map_or(Resolved::Missing, |file| Resolved::File(file.into()));
            assert_eq!(resolver.resolve("src/index.ts", specifier), found, "{specifier}");
        }
        for (specifier, name) in [("node:fs", "node:fs"), ("react/jsx", "react"), ("@a/b/c", "@a/b")] {
            assert_eq!(resolver.resolve("src/index.ts", specifier), Resolved::External(name.into()));
        }
    }

    #[test]
    fn packages_are_neighbours_or_in_node_modules() {
        let (_folder, tree) = tree(&[
            ("package.json", r#"{"workspaces": ["packages/*"]}"#),
            (
                "packages/a/package.json",
                r#"{"name": "@x/a", "exports": {".": "./dist/a.js", "./*": "./dist/*.js"}}"#,
            ),
            ("packages/a/src/a.ts", ""),
            ("packages/a/src/more.ts", ""),
            ("packages/b/package.json", r#"{"name": "b"}"#),
            ("packages/b/deep/c.ts", ""),
            ("node_modules/d/package.json", r#"{"types": "d.d.ts"}"#),
            ("node_modules/d/d.d.ts", ""),
            ("node_modules/@types/x__e/package.json", "{}"),
            ("node_modules/@types/x__e/index.d.ts", ""),
        ]);
        let packages = Packages::of(&tree).expect("packages");
        let mut resolver = Resolver::new(&tree, &packages);
        for (specifier, found) in [
            ("@x/a", Some("packages/a/src/a.ts")),
            ("@x/a/more", Some("packages/a/src/more.ts")),
            ("@x/a/none", None),
            ("b/deep/c", Some("packages/b/deep/c.ts")),
            ("d", Some("node_modules/d/d.d.ts")),
            ("@x/e", Some("node_modules/@types/x__e/index.d.ts")),
        ] {
            let found = found.map_or(Resolved::Missing, |file| Resolved::File(file.into()));
            assert_eq!(resolver.resolve("packages/b/index.ts", specifier), found, "{specifier}");
        }
    }
}
