//! Paths in a tree: relative to its root, with `/`, without `.` and `..`; the root itself is empty.

/// `path` as seen from `folder`. `None` if it leads out of the tree or is absolute.
pub(crate) fn join(folder: &str, path: &str) -> Option<String> {
    if path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The folder that a file is in.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// What follows `folder` in `path`, if it lies in it.
pub(crate) fn within<'p>(path: &'p str, folder: &str) -> Option<&'p str> {
    if folder.is_empty() {
        return Some(path);
    }
    path.strip_prefix(folder)?.strip_prefix('/')
}

/// A path inside a folder, which may be the root.
pub(crate) fn in_folder(folder: &str, path: &str) -> String {
    if folder.is_empty() { path.to_owned() } else { format!("{folder}/{path}") }
}

/// What TypeScript looks for, in this order, where JavaScript with this extension is named.
pub(crate) fn typed(extension: &str) -> &'static [&'static str] {
    match extension {
        ".js" => &[".ts", ".tsx", ".d.ts"],
        ".jsx" => &[".tsx", ".d.ts"],
        ".mjs" => &[".mts", ".d.mts"],
        ".cjs" => &[".cts", ".d.cts"],
        _ => &[],
    }
}

/// Extensions of source code, those of declarations first because they contain others.
const CODE: [&str; 11] =
    [".d.ts", ".d.mts", ".d.cts", ".ts", ".tsx", ".mts", ".cts", ".js", ".jsx", ".mjs", ".cjs"];

/// A path to code without its extension, and the extension.
pub(crate) fn split_code(path: &str) -> Option<(&str, &'static str)> {
    CODE.into_iter().find_map(|extension| {
        let stem = path.strip_suffix(extension)?;
        (!stem.is_empty() && !stem.ends_with('/')).then_some((stem, extension))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_and_do_not_lead_out() {
        assert_eq!(join("a/b", "./c.ts").as_deref(), Some("a/b/c.ts"));
        assert_eq!(join("a/b", "../c//d/./e").as_deref(), Some("a/c/d/e"));
        assert_eq!(join("", "").as_deref(), Some(""));
        assert_eq!(join("a", "../..").as_deref(), None);
        assert_eq!(join("a", "/etc/passwd").as_deref(), None);
    }

    #[test]
    fn what_lies_in_a_folder_is_found_by_whole_names() {
        assert_eq!((within("a/b/c", "a"), within("ab/c", "a"), within("a", "a")), (Some("b/c"), None, None));
        assert_eq!((parent("a/b/c.ts"), parent("c.ts")), ("a/b", ""));
    }

    #[test]
    fn a_declaration_is_one_extension() {
        assert_eq!(split_code("a/index.d.mts"), Some(("a/index", ".d.mts")));
        assert_eq!(split_code("a/b.test.ts"), Some(("a/b.test", ".ts")));
        assert_eq!((split_code("a/.ts"), split_code("style.css")), (None, None));
    }
}
