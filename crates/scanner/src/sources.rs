//! Where the source of a file is that is made by a build: a clone has no `dist/`.

use serde::Deserialize;

use crate::path::{in_folder, join, parent, split_code, within};
use crate::tree::Tree;

/// Extensions of sources, in the order in which they are looked for.
pub(crate) const SOURCE: [&str; 9] = [".ts", ".tsx", ".mts", ".cts", ".js", ".jsx", ".mjs", ".cjs", ".d.ts"];
/// Folders into which builds write.
const BUILT: [&str; 6] = ["dist", "build", "lib", "out", "esm", "cjs"];
/// How many files a tsconfig.json may extend, one after the other.
const MOST_EXTENDED: usize = 8;

/// How paths of built files in a package become paths of sources.
#[derive(Debug)]
pub(crate) struct Sources {
    /// `outDir` of tsconfig.json, and where what it has is made from, relative to the tree.
    compiled: Option<(String, Vec<String>)>,
    folder: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TsConfig {
    extends: Option<Extends>,
    compiler_options: CompilerOptions,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Extends {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CompilerOptions {
    out_dir: Option<String>,
    root_dir: Option<String>,
}

impl Sources {
    /// Of the package in `folder`.
    pub(crate) fn of(tree: &Tree, folder: &str) -> Self {
        let options = join(folder, "tsconfig.json").map(|path| compiler_options(tree, &path, MOST_EXTENDED));
        let compiled = options.and_then(|(out, root)| {
            let roots = match root {
                Some(root) => vec![root],
                // The compiler takes what its files have in common.
                None => vec![join(folder, "src")?, folder.to_owned()],
            };
            Some((out?, roots))
        });
        Self { compiled, folder: folder.to_owned() }
    }

    /// The source of `path`, which is relative to the tree and not there.
    pub(crate) fn find(&self, tree: &Tree, path: &str) -> Option<String> {
        self.places(path).iter().find_map(|place| {
            let stem = split_code(place).map_or(place.as_str(), |(stem, _)| stem);
            with_extension(tree, stem)
        })
    }

    /// Where the source of `path` may be, with the extension of `path`. Also of the beginning of a path.
    pub(crate) fn places(&self, path: &str) -> Vec<String> {
        let mut places = Vec::new();
        if let Some((out, roots)) = &self.compiled
            && let Some(rest) = within(path, out)
        {
            places.extend(roots.iter().map(|root| in_folder(root, rest)));
        }
        let mut rest = within(path, &self.folder).unwrap_or(path);
        while let Some((first, inner)) = rest.split_once('/')
            && BUILT.contains(&first)
        {
            places.push(in_folder(&in_folder(&self.folder, "src"), inner));
            rest = inner;
        }
        places
    }
}

/// The file at `stem` with an extension of sources, or the index of the folder there.
pub(crate) fn with_extension(tree: &Tree, stem: &str) -> Option<String> {
    let [file, index] = [stem.to_owned(), in_folder(stem, "index")];
    [file, index].iter().filter(|stem| !stem.is_empty()).find_map(|stem| {
        SOURCE.iter().map(|extension| format!("{stem}{extension}")).find(|path| tree.is_file(path))
    })
}

/// `outDir` and `rootDir` of the tsconfig at `path`, relative to the tree; what it extends counts where it is
/// silent itself.
fn compiler_options(tree: &Tree, path: &str, most: usize) -> (Option<String>, Option<String>) {
    let Ok(text) = tree.read(path) else { return (None, None) };
    let config: TsConfig = jsonc_parser::parse_to_serde_value(&text, &Default::default()).unwrap_or_default();
    let here = |value: Option<&String>| join(parent(path), value?);
    let mut out = here(config.compiler_options.out_dir.as_ref());
    let mut root = here(config.compiler_options.root_dir.as_ref());
    let extended = match config.extends {
        None => Vec::new(),
        Some(Extends::One(path)) => vec![path],
        Some(Extends::Several(paths)) => paths,
    };
    // The last one wins. One from a package says nothing about folders here.
    for extended in extended.iter().rev().filter(|extended| extended.starts_with('.')) {
        if most == 0 || (out.is_some() && root.is_some()) {
            break;
        }
        let Some(extended) = join(parent(path), extended) else { continue };
        let extended = if tree.is_file(&extended) { extended } else { format!("{extended}.json") };
        let (further_out, further_root) = compiler_options(tree, &extended, most - 1);
        out = out.or(further_out);
        root = root.or(further_root);
    }
    (out, root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tree;

    #[test]
    fn a_built_file_is_made_from_what_tsconfig_says() {
        let (_folder, tree) = tree(&[
            ("p/tsconfig.json", "{ // a comment\n \"extends\": [\"./other\", \"../base.json\"], }"),
            ("base.json", r#"{"compilerOptions": {"outDir": "./p/output"}}"#),
            ("p/other.json", r#"{"compilerOptions": {"rootDir": "source", "outDir": "no"}}"#),
            ("p/source/a.tsx", ""),
            ("p/source/b/index.mts", ""),
        ]);
        let sources = Sources::of(&tree, "p");
        assert_eq!(sources.find(&tree, "p/output/a.js").as_deref(), Some("p/source/a.tsx"));
        assert_eq!(sources.find(&tree, "p/output/b.d.ts").as_deref(), Some("p/source/b/index.mts"));
        assert_eq!(sources.find(&tree, "p/output/c.js"), None);
    }

    #[test]
    fn without_it_src_is_looked_at_for_each_folder_of_builds() {
        let (_folder, tree) = tree(&[("src/a.ts", ""), ("src/esm/b.ts", ""), ("tsconfig.json", "{")]);
        let sources = Sources::of(&tree, "");
        for (built, source) in [
            ("dist/a.js", Some("src/a.ts")),
            ("dist/esm/a.mjs", Some("src/a.ts")),
            ("dist/esm/b.d.mts", Some("src/esm/b.ts")),
            ("lib/a", Some("src/a.ts")),
            ("assets/a.js", None),
        ] {
            assert_eq!(sources.find(&tree, built).as_deref(), source, "{built}");
        }
    }

    #[test]
    fn a_tsconfig_that_extends_itself_comes_to_an_end() {
        let (_folder, tree) =
            tree(&[("tsconfig.json", r#"{"extends": "./tsconfig.json"}"#), ("src/a.ts", "")]);
        assert_eq!(Sources::of(&tree, "").find(&tree, "out/a.js").as_deref(), Some("src/a.ts"));
    }
}
