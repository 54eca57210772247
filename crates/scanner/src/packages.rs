//! The packages of a tree: the one at its root, or those of its workspaces (npm, Yarn, pnpm).

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Deserialize;

use crate::manifest::{self, Manifest, ManifestError};
use crate::path::join;
use crate::tree::Tree;

/// A folder with a `package.json`.
#[derive(Debug, Clone)]
pub struct Package {
    /// Relative to the tree.
    pub folder: String,
    pub manifest: Manifest,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Packages {
    /// In the order of their folders.
    pub found: Vec<Package>,
    /// `package.json` files of workspaces that say nothing, and why.
    pub skipped: Vec<(String, String)>,
}

/// There is no package of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no package `{asked}`; there are: {}", names.join(", "))]
pub struct UnknownPackage {
    pub asked: String,
    /// Those that there are.
    pub names: Vec<String>,
}

#[derive(Deserialize)]
struct PnpmWorkspace {
    packages: Option<Vec<String>>,
}

impl Packages {
    /// Finds the packages of `tree`, which needs a `package.json` at its root.
    pub fn of(tree: &Tree) -> Result<Self, ManifestError> {
        let root = Package { folder: String::new(), manifest: Manifest::read(tree, "")? };
        let mut packages = Self::default();
        let Some(patterns) = workspaces(tree, &root.manifest, &mut packages.skipped) else {
            packages.found.push(root);
            return Ok(packages);
        };
        let (members, left_out) = globs(&patterns, &mut packages.skipped);
        let mut folders = tree.folders_in("");
        while let Some(folder) = folders.pop() {
            folders.extend(tree.folders_in(&folder));
            if !members.is_match(&folder) || left_out.is_match(&folder) {
                continue;
            }
            match Manifest::read(tree, &folder) {
                Ok(manifest) => packages.found.push(Package { folder, manifest }),
                Err(ManifestError::Missing) => {}
                Err(error) => {
                    let file = join(&folder, manifest::FILE).unwrap_or(folder);
                    packages.skipped.push((file, error.to_string()));
                }
            }
        }
        packages.found.push(root);
        packages.found.sort_by(|one, other| one.folder.cmp(&other.folder));
        Ok(packages)
    }

    /// The one called `name`, or else all that are published, or else all that there are.
    pub fn select(&self, name: Option<&str>) -> Result<Vec<&Package>, UnknownPackage> {
        if let Some(asked) = name {
            let named = self.found.iter().find(|package| package.manifest.name() == Some(asked));
            let names = || self.found.iter().filter_map(|package| package.manifest.name()).map(str::to_owned);
            return named
                .map(|package| vec![package])
                .ok_or_else(|| UnknownPackage { asked: asked.to_owned(), names: names().collect() });
        }
        let is_published = |package: &&Package| !package.manifest.is_private();
        let published: Vec<_> = self.found.iter().filter(is_published).collect();
        // The root of workspaces is no package of its own unless it says that it is one.
        let own = |package: &&Package| !package.folder.is_empty() || package.manifest.name().is_some();
        let published: Vec<_> =
            if self.found.len() > 1 { published.into_iter().filter(own).collect() } else { published };
        Ok(if published.is_empty() { self.found.iter().collect() } else { published })
    }
}

/// The patterns of the members; `None` if the tree is one package.
fn workspaces(tree: &Tree, root: &Manifest, skipped: &mut Vec<(String, String)>) -> Option<Vec<String>> {
    const PNPM: &str = "pnpm-workspace.yaml";
    if let Ok(text) = tree.read(PNPM) {
        match serde_saphyr::from_str::<PnpmWorkspace>(&text) {
            Ok(workspace) => return Some(workspace.packages.unwrap_or_default()),
            Err(_) => skipped.push((PNPM.to_owned(), "it is not YAML with a list of packages".to_owned())),
        }
    }
    root.workspaces()
}

/// The folders that belong to it, and those that do not in spite of that.
fn globs(patterns: &[String], skipped: &mut Vec<(String, String)>) -> (GlobSet, GlobSet) {
    let mut sets = [GlobSetBuilder::new(), GlobSetBuilder::new()];
    for pattern in patterns {
        let (left_out, folder) = match pattern.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, pattern.as_str()),
        };
        let folder = folder.trim_start_matches("./").trim_end_matches('/');
        match glob(folder) {
            Ok(glob) => drop(sets[usize::from(left_out)].add(glob)),
            Err(error) => {
                skipped.push((pattern.clone(), format!("it is no pattern of folders: {}", error.kind())))
            }
        }
    }
    let [members, left_out] = sets.map(|set| set.build().unwrap_or_default());
    (members, left_out)
}

fn glob(folder: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(folder).literal_separator(true).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tree;

    fn folders(packages: &Packages) -> Vec<&str> {
        packages.found.iter().map(|package| package.folder.as_str()).collect()
    }

    #[test]
    fn a_tree_without_workspaces_is_one_package() {
        let (_folder, one) = tree(&[("package.json", r#"{"name": "a"}"#), ("b/package.json", "{}")]);
        assert_eq!(folders(&Packages::of(&one).expect("a package")), [""]);
        let (_folder, none) = tree(&[("b/package.json", "{}")]);
        assert_eq!(Packages::of(&none).err(), Some(ManifestError::Missing));
    }

    #[test]
    fn workspaces_are_found_by_their_patterns() {
        let (_folder, tree) = tree(&[
            (
                "package.json",
                r#"{"private": true, "workspaces": ["packages/*", "./tools/", "!packages/old"]}"#,
            ),
            ("packages/a/package.json", r#"{"name": "a"}"#),
            ("packages/a/deep/package.json", r#"{"name": "deep"}"#),
            ("packages/old/package.json", r#"{"name": "old"}"#),
            ("packages/broken/package.json", "{"),
            ("packages/empty/readme.md", ""),
            ("tools/package.json", r#"{"name": "tools", "private": true}"#),
        ]);
        let packages = Packages::of(&tree).expect("packages");
        assert_eq!(folders(&packages), ["", "packages/a", "tools"]);
        assert_eq!(packages.skipped.len(), 1);
        assert_eq!(packages.skipped[0].0, "packages/broken/package.json");
        let names = |name| {
            let selected = packages.select(name).expect("it is there");
            selected.iter().map(|package| package.manifest.name()).collect::<Vec<_>>()
        };
        assert_eq!(names(None), [Some("a")]);
        assert_eq!(names(Some("tools")), [Some("tools")]);
        let unknown = packages.select(Some("b")).expect_err("there is none");
        assert_eq!(unknown.to_string(), "there is no package `b`; there are: a, tools");
    }

    #[test]
    fn pnpm_names_its_members_in_a_file_of_its_own() {
        let (_folder, tree) = tree(&[
            ("package.json", "{}"),
            ("pnpm-workspace.yaml", "packages:\n  - 'libs/**'\n  - '!**/test/**'\ncatalog:\n  x: 1\n"),
            ("libs/a/b/package.json", "{}"),
            ("libs/test/c/package.json", "{}"),
        ]);
        assert_eq!(folders(&Packages::of(&tree).expect("packages")), ["", "libs/a/b"]);
    }

    #[test]
    fn private_packages_are_taken_if_there_are_no_others() {
        let (_folder, tree) = tree(&[
            ("package.json", r#"{"private": true, "workspaces": ["*"]}"#),
            ("a/package.json", r#"{"name": "a", "private": true}"#),
        ]);
        assert_eq!(Packages::of(&tree).expect("packages").select(None).expect("all").len(), 2);
    }
}
