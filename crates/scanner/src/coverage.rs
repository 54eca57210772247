//! How much of what an export needs to say its documentation says.

use crate::doc::{Doc, Tag};
use crate::module::{Declared, Kind};
use crate::signature::{Param, Signature, visible};

/// What documentation has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// It says what the thing is.
    Description,
    /// Each parameter has a `@param` with text.
    Params,
    /// What it gives back has a `@returns` with text.
    Returns,
}

impl Rule {
    /// As reports name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Description => "has-description",
            Self::Params => "has-params",
            Self::Returns => "has-returns",
        }
    }
}

/// The rules that count for an export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    pub applicable: Vec<Rule>,
    /// Those that are not satisfied.
    pub missing: Vec<Rule>,
}

impl Coverage {
    /// Of all declarations of one name, any of which may satisfy. `export_doc` stands before the statement that
    /// exports it, where that counts.
    pub fn of(declarations: &[Declared], export_doc: Option<&Doc>) -> Self {
        let docs: Vec<&Doc> =
            declarations.iter().flat_map(|declared| &declared.docs).chain(export_doc).collect();
        let kind = declarations.iter().map(|declared| declared.kind).min();
        let signatures =
            visible(declarations.iter().flat_map(|declared| &declared.signatures).cloned().collect());
        let mut coverage = Self::default();
        coverage.add(Rule::Description, docs.iter().any(|doc| has_description(doc)));
        let takes_something = signatures.iter().any(|signature| !signature.params.is_empty());
        let is_called = matches!(kind, Some(Kind::Function | Kind::Variable)) && !signatures.is_empty();
        if is_called || takes_something {
            coverage.add(Rule::Params, signatures.iter().all(|signature| has_params(signature, &docs)));
        }
        if is_called && signatures.iter().any(|signature| signature.returns) {
            let has_text = |doc: &&Doc| doc.tags(&["returns", "return"]).any(|tag| !tag.text.is_empty());
            coverage.add(Rule::Returns, docs.iter().any(has_text));
        }
        coverage
    }

    fn add(&mut self, rule: Rule, satisfied: bool) {
        self.applicable.push(rule);
        if !satisfied {
            self.missing.push(rule);
        }
    }

    /// From 0 to 100.
    pub fn percent(&self) -> f64 {
        if self.applicable.is_empty() {
            return 100.0;
        }
        let satisfied = self.applicable.len() - self.missing.len();
        100.0 * satisfied as f64 / self.applicable.len() as f64
    }
}

/// Text before the first tag, of a tag that stands for it, or taken over from something else.
fn has_description(doc: &Doc) -> bool {
    let has_text = |tag: &Tag| !tag.text.is_empty();
    !doc.description.is_empty() || doc.tags(&["description", "summary"]).any(has_text)
}

/// Whether each parameter is described. One that is taken apart has no name: the tag at its place describes it.
fn has_params(signature: &Signature, docs: &[&Doc]) -> bool {
    let described = |(place, param): (usize, &Param)| {
        docs.iter().any(|doc| {
            let tags = doc.tags(&["param", "arg", "argument"]);
            let mut named = tags.filter_map(|tag| Some((tag.subject.as_ref()?.name.as_str(), tag)));
            match &param.name {
                Some(name) => named.any(|(subject, tag)| subject == name && !tag.text.is_empty()),
                None => {
                    let mut whole = named.filter(|(subject, _)| !subject.contains('.'));
                    whole.nth(place).is_some_and(|(_, tag)| !tag.text.is_empty())
                }
            }
        })
    };
    signature.params.iter().enumerate().all(described)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::{Module, Target};

    /// What is missing of the export `name` of a file, after the number of rules that count.
    fn missing_of(name: &str, text: &str) -> String {
        let module = Module::parse("a.ts", text).expect("it parses");
        let export = &module.exports[name];
        let coverage = match &export.target {
            Target::Local(local) => Coverage::of(&module.declared[local], export.doc.as_ref()),
            Target::Unnamed(declared) => Coverage::of(std::slice::from_ref(declared), export.doc.as_ref()),
            _ => Coverage::of(&[], export.doc.as_ref()),
        };
        let missing: Vec<_> = coverage.missing.iter().map(|rule| rule.as_str()).collect();
        format!("{} {}", coverage.applicable.len(), missing.join(" ")).trim_end().to_owned()
    }

    #[test]
    fn a_description_is_text_or_a_tag_that_stands_for_it() {
        for (doc, expected) in [
            ("/** A bell. */", "1"),
            ("/** @summary A bell. */", "1"),
            ("/** @description\n * A bell. */", "1"),
            ("/** {@inheritDoc Other} */", "1"),
            ("/** @deprecated it rings */", "1 has-description"),
            ("/** */", "1 has-description"),
            ("/* A bell. */", "1 has-description"),
            ("// A bell.", "1 has-description"),
            ("/** A bell. */ /** */", "1 has-description"),
            ("/** Another. */ const b = 1;", "1 has-description"),
            ("/** A bell. */\n// and a remark\n", "1"),
        ] {
            assert_eq!(missing_of("a", &format!("{doc}\nexport type a = 1")), expected, "{doc}");
        }
        assert_eq!(missing_of("a", "/** All of it. */\nexport * as a from './a'"), "1");
        assert_eq!(
            missing_of("a", "export interface a {}\n/** A bell. */\nexport interface a { b: 1 }"),
            "1"
        );
        assert_eq!(missing_of("b", "/** Both. */\nexport const a = 1,\n  /** */ b = 2"), "1 has-description");
        assert_eq!(missing_of("b", "/** Both. */\nexport const a = 1, b = 2"), "1");
    }

    #[test]
    fn each_parameter_is_described() {
        let doc = "/** Rings.\n * @param bell - which\n * @argument {number} [times] how often\n * @returns the sound */\n";
        let all = "3 has-description has-params has-returns";
        for (function, expected) in [
            ("export function a(bell: string, times = 1) { return 1 }", "3"),
            ("export function a(bell: string, ...times: number[]): number { return 1 }", "3"),
            ("export function a(this: Tower, bell: string) { return 1 }", "3"),
            ("export function a(bell: string, times: number, pause: number) { return 1 }", "3 has-params"),
            ("export const a = (bell) => bell", "3"),
            ("export const a = async function (bell, { every }) {}", "2"),
            ("export const a: (bell: string, volume: number) => void = ring", "2 has-params"),
            ("export const a: Ring = ring", "1"),
            ("export const { a } = (bell) => 1", "1"),
        ] {
            assert_eq!(missing_of("a", &format!("{doc}{function}")), expected, "{function}");
        }
        assert_eq!(missing_of("a", "export const a = (x) => 1"), all);
        assert_eq!(missing_of("default", "export default (x) => 1"), all);
        assert_eq!(
            missing_of("default", "/** A. @param x\n * @param x it\n@return y */\nexport default (x) => 1"),
            "3"
        );
        let apart = "/** A.\n * @param x it\n * @param options all\n * @param options.y one */\nexport function a(x, { y }) {}";
        assert_eq!(missing_of("a", apart), "2");
        assert_eq!(missing_of("a", &apart.replace(" all", "")), "2 has-params");
    }

    #[test]
    fn what_comes_back_is_described_unless_nothing_does() {
        for (function, expected) in [
            ("(): void {}", "2"),
            ("(): Promise<void> {}", "2"),
            ("(): Promise<(undefined)> {}", "2"),
            ("(): never {}", "2"),
            ("(x): asserts x is string {}", "2 has-params"),
            ("(x): x is string {}", "3 has-params has-returns"),
            ("(): Promise<string> {}", "3 has-returns"),
            ("(): Promise {}", "3 has-returns"),
            ("() { if (x) { for (;;) { return 1 } } }", "3 has-returns"),
            ("() { try { } catch { switch (x) { default: return 1 } } }", "3 has-returns"),
            ("() { return; }", "2"),
            ("() { return function () { return 1 } }", "3 has-returns"),
            ("() { call(() => { return 1 }); function b() { return 1 } }", "2"),
        ] {
            let text = format!("/** Rings. */\nexport function a{function}");
            assert_eq!(missing_of("a", &text), expected, "{function}");
        }
    }

    #[test]
    fn overloads_count_and_what_is_behind_them_does_not() {
        let text = "/** A.\n * @param x one\n * @returns it */\nexport function a(x: string): string;\n\
                    /** @param y two */\nexport function a(y: number): number;\n\
                    export function a(...all: unknown[]) { return all }";
        assert_eq!(missing_of("a", text), "3");
        assert_eq!(missing_of("a", &text.replace(" two", "")), "3 has-params");
    }

    #[test]
    fn a_class_is_described_with_its_constructor() {
        let class = |inner: &str| {
            missing_of("a", &format!("/** A.\n * @param x it */\nexport class a {{ {inner} }}"))
        };
        assert_eq!(class(""), "1");
        assert_eq!(class("constructor() {}"), "1");
        assert_eq!(class("constructor(private x: number) {}"), "2");
        assert_eq!(class("constructor(x: number, y: number) {}"), "2 has-params");
        assert_eq!(class("/** @param y that */ constructor(x: number, y: number) {}"), "2");
        assert_eq!(class("private constructor(y: number) {}"), "1");
        assert_eq!(class("method(y: number) { return 1 }"), "1");
    }

    #[test]
    fn percent_is_the_share_of_the_rules_that_count() {
        let coverage = Coverage { applicable: vec![Rule::Description; 3], missing: vec![Rule::Params] };
        assert!((coverage.percent() - 66.666).abs() < 0.001);
        assert!((Coverage::default().percent() - 100.0).abs() < f64::EPSILON);
    }
}
