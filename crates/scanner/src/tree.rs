//! The folder that is read, and nothing outside of it: no link, `..` or absolute path leads out, whatever else
//! the system would allow. What is too large or no text is refused by name.

use std::io::{self, Read as _};
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, FileType};

use crate::path::join;

/// What is read at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files that are listed, over the whole tree.
    pub files: usize,
}

impl Default for Limits {
    /// A file of 8 MiB is none that somebody wrote by hand.
    fn default() -> Self {
        Self { file_bytes: 8 << 20, files: 100_000 }
    }
}

/// Why a file is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    #[error("there is no such file")]
    Missing,
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    #[error("it is not UTF-8")]
    NotText,
    #[error("it is no file inside the tree that can be read")]
    Refused,
}

/// A folder with packages in it. Paths are relative to it, with `/`.
#[derive(Debug)]
pub struct Tree {
    root: Dir,
    limits: Limits,
}

/// The files of a folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// In the order of their names.
    pub files: Vec<String>,
    /// Some are left out, because there are more than the limit.
    pub cut: bool,
}

impl Tree {
    /// Opens the folder at `path`.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        Ok(Self { root: Dir::open_ambient_dir(path, ambient_authority())?, limits })
    }

    /// Whether there is a file at `path` that may be read.
    pub fn is_file(&self, path: &str) -> bool {
        self.root.metadata(path).is_ok_and(|found| found.is_file())
    }

    /// The text of a file, without a byte order mark.
    pub fn read(&self, path: &str) -> Result<String, Unread> {
        let refused = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unread::Missing,
            _ => Unread::Refused,
        };
        // A pipe would be waited for.
        if !self.root.metadata(path).map_err(refused)?.is_file() {
            return Err(Unread::Refused);
        }
        let file = self.root.open(path).map_err(refused)?;
        let mut bytes = Vec::new();
        // It may have grown since.
        file.take(self.limits.file_bytes + 1).read_to_end(&mut bytes).map_err(refused)?;
        if bytes.len() as u64 > self.limits.file_bytes {
            return Err(Unread::TooLarge(self.limits.file_bytes));
        }
        let mut text = String::from_utf8(bytes).map_err(|_| Unread::NotText)?;
        if text.starts_with('\u{feff}') {
            text.drain(..'\u{feff}'.len_utf8());
        }
        Ok(text)
    }

    /// All files under `folder`, without those of dependencies and hidden ones. Links to folders are not
    /// followed, so that each file is there once.
    pub fn files_under(&self, folder: &str) -> Listing {
        let mut found = Listing::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for (name, kind) in self.entries_of(&folder) {
                let Some(path) = join(&folder, &name) else { continue };
                if kind.is_dir() {
                    folders.push(path);
                } else if found.files.len() == self.limits.files {
                    found.cut = true;
                    folders.clear();
                    break;
                } else if kind.is_file() || self.is_file(&path) {
                    found.files.push(path);
                }
            }
        }
        found.files.sort_unstable();
        found
    }

    /// The folders in `folder`, hidden ones and dependencies left out.
    pub(crate) fn folders_in(&self, folder: &str) -> Vec<String> {
        let entries = self.entries_of(folder).into_iter().filter(|(_, kind)| kind.is_dir());
        entries.filter_map(|(name, _)| join(folder, &name)).collect()
    }

    /// What is in a folder, in the order of the names. Hidden names, those that are no text, and dependencies are
    /// left out.
    fn entries_of(&self, folder: &str) -> Vec<(String, FileType)> {
        let folder = if folder.is_empty() { "." } else { folder };
        let entries = self.root.read_dir(folder).into_iter().flatten().flatten();
        let named = |entry: cap_std::fs::DirEntry| {
            Some((entry.file_name().into_string().ok()?, entry.file_type().ok()?))
        };
        let is_own = |(name, _): &(String, FileType)| !name.starts_with('.') && name != "node_modules";
        let mut entries: Vec<_> = entries.filter_map(named).filter(is_own).collect();
        entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        entries
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::tests::tree;

    #[test]
    fn nothing_leads_out_of_the_tree() {
        let outside = tempfile::tempdir().expect("a folder");
        fs::write(outside.path().join("secret.ts"), "secret").expect("written");
        let (folder, tree) = tree(&[("src/a.ts", "a"), ("package.json", "{}")]);
        let link = |target: &Path, name: &str| symlink(target, folder.path().join(name)).expect("linked");
        link(&outside.path().join("secret.ts"), "src/secret.ts");
        link(outside.path(), "src/out");
        link(Path::new("a.ts"), "src/b.ts");
        link(Path::new("../src"), "src/loop");
        for path in ["src/secret.ts", "src/out/secret.ts", "../x", "/etc/passwd", "src/../../x"] {
            assert_eq!(tree.read(path), Err(Unread::Refused), "{path}");
            assert!(!tree.is_file(path), "{path}");
        }
        assert_eq!(tree.read("src/b.ts").as_deref(), Ok("a"));
        assert_eq!(tree.read("src/loop/loop/a.ts").as_deref(), Ok("a"));
        assert_eq!(tree.files_under("").files, ["package.json", "src/a.ts", "src/b.ts"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let (folder, _) = tree(&[("bom.ts", "\u{feff}let x"), ("large.ts", &"x".repeat(101))]);
        fs::write(folder.path().join("binary.ts"), b"\xff\xfe").expect("written");
        let limits = Limits { file_bytes: 100, files: 2 };
        let tree = Tree::open(folder.path(), limits).expect("it is there");
        assert_eq!(tree.read("bom.ts").as_deref(), Ok("let x"));
        assert_eq!(tree.read("large.ts"), Err(Unread::TooLarge(100)));
        assert_eq!(tree.read("binary.ts"), Err(Unread::NotText));
        assert_eq!(tree.read("none.ts"), Err(Unread::Missing));
        assert_eq!(tree.read("bom.ts/x"), Err(Unread::Missing));
        assert_eq!(tree.read(""), Err(Unread::Missing));
        let listing = tree.files_under("");
        assert_eq!((listing.files.len(), listing.cut), (2, true));
    }

    #[test]
    fn dependencies_and_hidden_folders_are_not_listed() {
        let (_folder, tree) = tree(&[
            ("a/b.ts", ""),
            ("node_modules/x/i.ts", ""),
            (".git/config", ""),
            ("a/node_modules/y.ts", ""),
        ]);
        assert_eq!(tree.files_under("").files, ["a/b.ts"]);
        assert_eq!(tree.folders_in(""), ["a"]);
    }
}
