use super::*;
use crate::tests::tree;

/// The entry points of a package with this manifest and these empty files, as `subpath file`, and what is skipped.
fn entries(manifest: &str, files: &[&str]) -> (Vec<String>, Vec<String>) {
    let mut all = vec![("package.json", manifest)];
    all.extend(files.iter().map(|file| (*file, "")));
    let (_folder, tree) = tree(&all);
    let manifest = Manifest::parse(manifest).expect("an object");
    let found = Entries::of(&tree, &Package { folder: String::new(), manifest });
    let points = found.points.iter().map(|point| format!("{} {}", point.subpath, point.file)).collect();
    (points, found.skipped.into_iter().map(|(subpath, _)| subpath).collect())
}

fn points(manifest: &str, files: &[&str]) -> Vec<String> {
    let (points, skipped) = entries(manifest, files);
    assert_eq!(skipped, [""; 0], "{manifest}");
    points
}

#[test]
fn conditions_count_in_the_order_in_which_they_are_written() {
    let exports = r#"{"exports": {".": {"import": "./a.mjs", "types": "./t.d.ts", "default": "./b.js"}}}"#;
    assert_eq!(points(exports, &["a.mjs", "t.d.ts", "b.js"]), [". a.mjs"]);
    assert_eq!(points(exports, &["a.mjs", "a.d.mts", "t.d.ts"]), [". a.d.mts"], "types beside it win");
    assert_eq!(points(exports, &["t.d.ts", "b.js"]), [". t.d.ts"], "what is not there is passed over");
    let nested = r#"{"exports": {"node": "./n.js", "import": {"node": "./n.js", "types": "./t.ts"}}}"#;
    assert_eq!(points(nested, &["n.js", "t.ts"]), [". t.ts"]);
    let required = r#"{"exports": {"browser": "./b.js", "require": ["./c.css", "./none.cjs", "./d.cjs"]}}"#;
    assert_eq!(points(required, &["b.js", "d.cjs", "c.css"]), [". d.cjs"]);
    let ranged =
        r#"{"exports": {"types@<5.0": "./old.d.ts", "types@>=5.2": "./new.d.ts", "types": "./t.d.ts"}}"#;
    assert_eq!(points(ranged, &["old.d.ts", "new.d.ts", "t.d.ts"]), [". new.d.ts"]);
}

#[test]
fn only_what_leads_to_code_is_an_entry_point() {
    let exports = r#"{"exports": {
        ".": "./a.js", "./package.json": "./package.json", "./style": "./s.css",
        "./shut": null, "./gone": "./gone.js", "./out": "./../x.js", "./bare": "b.js"
    }}"#;
    let (points, skipped) = entries(exports, &["a.js", "s.css", "b.js"]);
    assert_eq!(points, [". a.js"]);
    assert_eq!(skipped, ["./gone", "./out", "./bare"]);
}

#[test]
fn patterns_stand_for_the_files_that_are_there() {
    let exports = r#"{"exports": {
        "./*": "./dist/*.js", "./deep/*": {"types": "./types/*.d.ts", "default": "./dist/deep/*.js"},
        "./internal/*": null, "./twice/*": "./two/*/*.js", "./one": "./dist/one.js"
    }}"#;
    let files = [
        "dist/one.js",
        "dist/two.js",
        "dist/two.d.ts",
        "dist/internal/x.js",
        "dist/deep/a.js",
        "types/a.d.ts",
        "two/m/m.js",
        "two/m/n.js",
        "dist/readme.md",
    ];
    assert_eq!(
        points(exports, &files),
        ["./two dist/two.d.ts", "./deep/a types/a.d.ts", "./twice/m two/m/m.js", "./one dist/one.js"]
    );
}

#[test]
fn a_pattern_of_files_that_are_built_stands_for_their_sources() {
    let exports = r#"{"exports": {".": "./dist/index.js", "./*": {"types": "./dist/*.d.ts", "import": "./dist/*.js"}}}"#;
    let files = ["src/index.ts", "src/a.ts", "src/a.test.ts", "src/ui/b.tsx"];
    let found = points(exports, &files);
    assert_eq!(found, [". src/index.ts", "./a src/a.ts", "./index src/index.ts", "./ui/b src/ui/b.tsx"]);
    let old = r#"{"exports": {"./lib/": "./lib/"}}"#;
    assert_eq!(points(old, &["lib/a.js"]), ["./lib/a.js lib/a.js"]);
}

#[test]
fn what_is_not_built_is_its_source() {
    let one = |manifest: &str, files: &[&str]| points(manifest, files).join(" ");
    let dist = r#"{"exports": {".": {"types": "./dist/index.d.ts", "import": "./dist/index.js"}}}"#;
    assert_eq!(one(dist, &["src/index.ts", "index.js"]), ". src/index.ts");
    assert_eq!(one(dist, &["index.js"]), ". index.js", "the last resort");
    assert_eq!(one(dist, &["dist/index.js", "src/index.ts"]), ". dist/index.js", "it is there");
    let own = r#"{"source": "lib/main.ts", "main": "dist/x.js"}"#;
    assert_eq!(one(own, &["lib/main.ts", "src/index.ts"]), ". lib/main.ts");
    let sub = r#"{"exports": {"./sub": "./dist/sub.js"}}"#;
    assert_eq!(entries(sub, &["src/index.ts"]).1, ["./sub"], "no other file is taken for it");
    assert_eq!(one(sub, &["src/sub/index.tsx"]), "./sub src/sub/index.tsx");
}

#[test]
fn without_exports_there_is_one() {
    let one = |manifest: &str, files: &[&str]| points(manifest, files).join(" ");
    assert_eq!(one(r#"{"main": "lib/a", "types": "t.d.ts"}"#, &["lib/a.js", "t.d.ts"]), ". t.d.ts");
    assert_eq!(one(r#"{"typings": "./types"}"#, &["types/index.d.ts"]), ". types/index.d.ts");
    assert_eq!(one(r#"{"main": "lib/a"}"#, &["lib/a.js", "lib/a.d.ts"]), ". lib/a.d.ts");
    assert_eq!(one(r#"{"module": "m.mjs"}"#, &["m.mjs"]), ". m.mjs");
    assert_eq!(one("{}", &["index.js"]), ". index.js");
    assert_eq!(one(r#"{"main": "dist/a.js"}"#, &["src/a.ts"]), ". src/a.ts");
    assert_eq!(entries("{}", &["readme.md"]).1, ["."]);
}

#[test]
fn types_versions_count_for_the_version_that_is_spoken_of() {
    let versions = r#"{"types": "index.d.ts", "typesVersions": {
        "<4.0": {"*": ["old/*"]}, ">=4.0 <6": {"*": ["new/*"], "index.d.ts": ["other/index.d.ts"]}}}"#;
    let files = ["old/index.d.ts", "new/index.d.ts", "index.d.ts"];
    assert_eq!(
        points(versions, &files),
        [". new/index.d.ts"].map(|_| ". index.d.ts"),
        "the other one is not there"
    );
    let files = ["old/index.d.ts", "new/index.d.ts", "index.d.ts", "other/index.d.ts"];
    assert_eq!(points(versions, &files), [". other/index.d.ts"]);
    let all = r#"{"main": "lib/main.js", "typesVersions": {"*": {"*": ["ts/*"]}}}"#;
    assert_eq!(points(all, &["lib/main.js", "ts/lib/main.d.ts"]), [". ts/lib/main.d.ts"]);
}
