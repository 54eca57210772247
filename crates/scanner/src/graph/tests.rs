use super::*;
use crate::tests::tree;

/// The names of `index.ts` in a tree of these files, as `name kind file:line`, and what is skipped.
fn names(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let mut all = vec![("package.json", "{}")];
    all.extend_from_slice(files);
    let (_folder, tree) = tree(&all);
    let packages = Packages::of(&tree).expect("a package");
    let entry = files.iter().map(|(path, _)| *path).find(|path| path.starts_with("index")).expect("an index");
    let graph = Graph::of(&tree, &packages, [entry]);
    let names = graph.names_of(entry);
    let shown = |(name, found): (&String, &Name)| {
        let Name { kind, file, line, external } = found;
        let external = external.as_ref().map(|package| format!(" of {package}")).unwrap_or_default();
        format!("{name} {} {file}:{line}{external}", kind.map_or("?", Kind::as_str))
    };
    let skipped = graph.skipped.iter().chain(&names.skipped).map(|(what, _)| what.clone()).collect();
    (names.found.iter().map(shown).collect(), skipped)
}

fn found(files: &[(&str, &str)]) -> Vec<String> {
    let (found, skipped) = names(files);
    assert_eq!(skipped, [""; 0]);
    found
}

#[test]
fn names_are_followed_to_where_they_are_declared() {
    let names = found(&[
        (
            "index.ts",
            "export * from './a';\nexport { b as c } from './a';\nimport { d } from './b';\nexport { d };",
        ),
        ("a.ts", "export { b } from './b';\nexport const a = 1;\nexport default 1;"),
        ("b.ts", "\n\nexport class b {}\nexport { e as d };\nfunction e() {}"),
    ]);
    assert_eq!(names, ["a variable a.ts:2", "b class b.ts:3", "c class b.ts:3", "d function b.ts:5"]);
}

#[test]
fn local_names_win_over_those_of_stars_and_defaults_stay() {
    let names = found(&[
        ("index.ts", "export * from './a';\nexport * from './b';\nexport const x = 1;"),
        ("a.ts", "export const x = 2;\nexport default 3;\nexport { y } from './b';"),
        ("b.ts", "export const y = 2, x = 4;"),
    ]);
    assert_eq!(names, ["x variable index.ts:3", "y variable b.ts:1"], "one thing by two ways is one name");
}

#[test]
fn different_things_under_one_name_are_skipped() {
    let (names, skipped) = names(&[
        ("index.ts", "export * from './a';\nexport * from './b';"),
        ("a.ts", "export const x = 1, y = 1;"),
        ("b.ts", "export const x = 2;"),
    ]);
    assert_eq!((names, skipped), (vec!["y variable a.ts:1".to_owned()], vec!["x".to_owned()]));
}

#[test]
fn circles_come_to_an_end() {
    let names = found(&[
        ("index.ts", "export * from './a';\nexport * from './index';\nexport { z } from './index';"),
        ("a.ts", "export * from './b';\nexport const a = 1;"),
        (
            "b.ts",
            "export * from './a';\nexport { a as b, q as r } from './a';\nexport { r as q } from './b';",
        ),
    ]);
    assert_eq!(
        names,
        ["a variable a.ts:2", "b variable a.ts:2", "q ? b.ts:3", "r ? b.ts:2", "z ? index.ts:3"]
    );
}

#[test]
fn long_chains_are_followed() {
    let count = 3000;
    let mut files =
        vec![("index.ts".to_owned(), "export * from './m0';\nexport { f as g } from './n0';".to_owned())];
    for number in 0..count {
        let next = number + 1;
        files.push((format!("m{number}.ts"), format!("export * from './m{next}';")));
        files.push((format!("n{number}.ts"), format!("export {{ f }} from './n{next}';")));
    }
    files.push((format!("m{count}.ts"), "export const e = 1;".to_owned()));
    files.push((format!("n{count}.ts"), "export const f = 1;".to_owned()));
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    assert_eq!(found(&files), ["e variable m3000.ts:1", "g variable n3000.ts:1"]);
}

#[test]
fn what_is_assigned_gives_its_members() {
    let names = found(&[
        (
            "index.d.ts",
            "import f = require('./f');\nexport { f };\nexport { default as g, x as h } from './f';\nexport * from './f';",
        ),
        (
            "f.d.ts",
            "declare function f(): void;\ndeclare namespace f {\n  const x: 1;\n  type T = 1;\n}\nexport = f;",
        ),
    ]);
    assert_eq!(
        names,
        [
            "T type f.d.ts:4",
            "f function f.d.ts:1",
            "g function f.d.ts:1",
            "h variable f.d.ts:3",
            "x variable f.d.ts:3",
        ]
    );
    let names = found(&[("index.d.ts", "export = n;\ndeclare namespace n { const a: 1 }")]);
    assert_eq!(names, ["a variable index.d.ts:2", "export= namespace index.d.ts:2"]);
}

#[test]
fn whole_modules_and_their_members_have_names() {
    let names = found(&[
        (
            "index.ts",
            "export * as a from './a';\nimport * as b from './a';\nexport { b };\nexport import c = b.x;\nexport default b.N;",
        ),
        ("a.ts", "export const x = 1;\nexport namespace N {}"),
    ]);
    assert_eq!(
        names,
        ["a namespace index.ts:1", "b namespace index.ts:3", "c variable a.ts:1", "default namespace a.ts:2",]
    );
}

#[test]
fn what_is_of_another_package_says_so() {
    let (found, skipped) = names(&[
        (
            "index.ts",
            "export { x } from 'far';\nexport { y } from 'near';\nexport * from 'near/sub';\nexport * from 'gone';\nexport * from './none';",
        ),
        ("node_modules/near/package.json", "{}"),
        ("node_modules/near/index.d.ts", "export declare const y: 1;"),
        ("node_modules/near/sub.d.ts", "export * from './z';"),
        ("node_modules/near/z.d.ts", "export declare const z: 1;"),
    ]);
    assert_eq!(
        found,
        [
            "x ? index.ts:1 of far",
            "y variable node_modules/near/index.d.ts:1 of near",
            "z variable node_modules/near/z.d.ts:1 of near",
        ]
    );
    assert_eq!(skipped, ["gone", "./none"]);
}
