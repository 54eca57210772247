//! Reads a tree of TypeScript and JavaScript packages. Pure: a folder goes in, a report comes out. It knows no
//! store and no network, and reads nothing outside the folder.
//!
//! The [`packages`] of a [`tree`] have [`entries`], the files that others import by their names. A [`module`] is
//! what one file declares and exports; the [`graph`] follows exports from file to file, so that each name is known
//! with its declaration. [`coverage`] says what of its [`doc`] comment is missing.
//!
//! Not here yet: `exports` of CommonJS, drift between documentation and code, reports, and the command that prints
//! them. Nothing uses this crate so far.

pub mod coverage;
pub mod doc;
pub mod entries;
pub mod graph;
pub mod manifest;
pub mod module;
pub mod packages;
mod path;
pub mod resolve;
pub mod signature;
mod sources;
pub mod tree;

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use crate::tree::{Limits, Tree};

    /// A folder with these files, opened.
    pub(crate) fn tree(files: &[(&str, &str)]) -> (TempDir, Tree) {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("it is in the folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        let tree = Tree::open(folder.path(), Limits::default()).expect("it is there");
        (folder, tree)
    }
}
