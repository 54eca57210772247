use super::*;

/// The exports of a file, as `name line target`.
fn exports(path: &str, text: &str) -> Vec<String> {
    let module = Module::parse(path, text).expect("it parses");
    let shown = |(name, export): (&String, &Export)| {
        let target = match &export.target {
            Target::Local(name) => name.clone(),
            Target::Unnamed(declared) => format!("<{}>", declared.kind.as_str()),
            Target::Of { specifier, name } => format!("{name}@{specifier}"),
            Target::All { specifier } => format!("*@{specifier}"),
        };
        format!("{name} {} {target}", export.line)
    };
    module.exports.iter().map(shown).collect()
}

#[test]
fn every_form_of_an_export_is_known() {
    let text = "import d, { x as y, default as z } from './m';
export { y, z as \"a b\" };
export const a = 1, { b, c: [e = 2, ...f], ...g } = o;
export function h(): void;
export function h(n?: number) {}
export type { T } from '../t.js';
export * from './star';
export * as all from './all';
export class K {}
export enum E { A }
export abstract class L {}
export default d;
";
    assert_eq!(
        exports("a.ts", text),
        [
            "E 10 E",
            "K 9 K",
            "L 11 L",
            "T 6 T@../t.js",
            "a 3 a",
            "a b 2 z",
            "all 8 *@./all",
            "b 3 b",
            "default 12 d",
            "e 3 e",
            "f 3 f",
            "g 3 g",
            "h 4 h",
            "y 2 y",
        ]
    );
    let module = Module::parse("a.ts", text).expect("it parses");
    assert_eq!(module.stars, ["./star"]);
    assert_eq!(module.imports["z"], Target::Of { specifier: "./m".into(), name: "default".into() });
    assert_eq!(module.declared["h"].len(), 2);
}

#[test]
fn a_default_has_a_name_of_its_own_or_none() {
    let one = |text| exports("a.ts", text).join(" ");
    assert_eq!(one("\nexport default function f() {}"), "default 2 f");
    assert_eq!(one("export default class {}"), "default 1 <class>");
    assert_eq!(one("export default interface I {}"), "default 1 I");
    assert_eq!(one("export default () => 1"), "default 1 <function>");
    assert_eq!(one("export default { a: 1 }"), "default 1 <variable>");
    assert_eq!(one("export default a.b"), "default 1 a.b");
}

#[test]
fn values_speak_for_what_is_merged_with_them() {
    let module = Module::parse(
        "a.ts",
        "interface A {}\nconst A = 1;\nnamespace B { export const x = 1; const y = 2 }\nfunction B() {}\n\
         type C = 1; namespace D.E { export type F = 1 }",
    );
    let module = module.expect("it parses");
    let main =
        |name: &str| module.main_declaration(name).map(|declared| (declared.kind.as_str(), declared.line));
    assert_eq!(main("A"), Some(("variable", 2)));
    assert_eq!(main("B"), Some(("function", 4)));
    assert_eq!((main("C"), main("X")), (Some(("type", 5)), None));
    assert_eq!(module.members["B"], ["x"]);
    assert_eq!(
        (&module.members["D"][..], &module.members["D.E"][..]),
        (&["E".to_owned()][..], &["F".to_owned()][..])
    );
    assert_eq!(main("D.E.F"), Some(("type", 5)));
}

#[test]
fn in_declarations_everything_is_exported_unless_something_says_what() {
    assert_eq!(exports("a.d.ts", "declare const a: 1;\nexport interface B {}\ntype C = 1;").len(), 3);
    assert_eq!(exports("a.d.ts", "declare const a: 1;\nexport interface B {}\nexport {};"), ["B 2 B"]);
    assert_eq!(exports("a.d.ts", "declare const a: 1;"), [""; 0], "no module, so that nothing is exported");
    assert_eq!(exports("a.ts", "declare const a: 1; export type B = 1"), ["B 1 B"]);
    let namespace = "declare namespace N { const a: 1; export const b: 2 }\nexport = N;";
    assert_eq!(exports("a.d.ts", namespace), ["export= 2 N"]);
    let module = Module::parse("a.d.ts", namespace).expect("it parses");
    assert_eq!(module.members["N"], ["a", "b"]);
}

#[test]
fn imports_with_an_equals_sign_stand_for_something() {
    let module = Module::parse("a.ts", "import f = require('./f');\nexport import g = N.M.g;\nimport h = N;");
    let module = module.expect("it parses");
    assert_eq!(module.imports["f"], Target::Of { specifier: "./f".into(), name: "export=".into() });
    assert_eq!(module.imports["g"], Target::Local("N.M.g".into()));
    assert_eq!(module.imports["h"], Target::Local("N".into()));
    assert_eq!(module.exports["g"].target, Target::Local("g".into()));
}

#[test]
fn what_does_not_parse_says_why() {
    for text in ["export const = 1", "export {", "class {"] {
        let error = Module::parse("a.ts", text).expect_err(text).to_string();
        assert!(error.starts_with("it does not parse: ") && error.len() > 25, "{error}");
    }
    let partly = Module::parse("a.ts", "export const a = 1;\n\0").expect("in part");
    assert!(partly.broken.is_some());
    assert!(Module::parse("a.tsx", "export const a = <b>c</b>").is_ok());
    assert!(Module::parse("a.ts", "export const a = <b>c").is_ok());
    assert!(Module::parse("a.js", "export const a = 1").is_ok());
}
