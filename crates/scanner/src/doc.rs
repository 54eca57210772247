//! Doc comments (`/** … */`) as JSDoc and TSDoc have them: a description, and block tags that begin a line.

/// What a doc comment says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doc {
    /// What stands before the first block tag.
    pub description: String,
    pub tags: Vec<Tag>,
}

/// A block tag with what follows it, up to the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Without the `@`.
    pub name: String,
    /// Of the tag, from 1.
    pub line: u32,
    /// What stands in braces after its name, without them.
    pub typed: Option<String>,
    /// What it is about, for tags that are about something, such as `@param`.
    pub subject: Option<Subject>,
    /// The rest, without blanks around it.
    pub text: String,
}

/// What a tag is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// With dots for a property of a parameter, such as `options.size`.
    pub name: String,
    /// It stands in brackets, or its type ends in `=`.
    pub optional: bool,
}

/// Tags that are followed by a type, and those of them that name something after it.
const TYPED: [&str; 13] = [
    "param", "arg", "argument", "returns", "return", "type", "template", "typedef", "property", "prop",
    "callback", "throws", "yields",
];
const ABOUT: [&str; 8] = ["param", "arg", "argument", "template", "typeParam", "typedef", "property", "prop"];

impl Doc {
    /// Reads the comment `text`, from `/**` to `*/`, which begins in `line`.
    pub fn parse(text: &str, line: u32) -> Self {
        let inner = text.strip_prefix("/**").unwrap_or(text);
        let inner = inner.strip_suffix("*/").unwrap_or(inner);
        let mut doc = Self::default();
        let mut part = String::new();
        let mut tag: Option<(String, u32)> = None;
        let mut fenced = false;
        for (number, raw) in inner.lines().enumerate() {
            let content = without_star(raw, number == 0);
            let begins = content.trim_start();
            let name = begins.strip_prefix('@').map(tag_name).filter(|name| !name.is_empty() && !fenced);
            if begins.starts_with("```") || begins.starts_with("~~~") {
                fenced = !fenced;
            }
            if let Some(name) = name {
                doc.finish(tag.take(), &part);
                part.clear();
                tag = Some((name.to_owned(), line + number as u32));
                part.push_str(&begins[1 + name.len()..]);
            } else {
                part.push_str(content);
            }
            part.push('\n');
        }
        doc.finish(tag, &part);
        doc
    }

    /// The tags of these names.
    pub fn tags<'d>(&'d self, names: &'d [&str]) -> impl Iterator<Item = &'d Tag> {
        self.tags.iter().filter(|tag| names.contains(&tag.name.as_str()))
    }

    fn finish(&mut self, tag: Option<(String, u32)>, part: &str) {
        match tag {
            None => self.description = part.trim().to_owned(),
            Some((name, line)) => self.tags.push(Tag::parse(name, line, part)),
        }
    }
}

impl Tag {
    fn parse(name: String, line: u32, rest: &str) -> Self {
        let mut rest = rest.trim();
        let mut typed = None;
        if TYPED.contains(&name.as_str())
            && let Some((inside, after)) = in_braces(rest)
        {
            typed = Some(inside.trim().to_owned());
            rest = after.trim_start();
        }
        let mut subject = None;
        if ABOUT.contains(&name.as_str()) {
            (subject, rest) = about(rest);
            // TypeScript also takes the type after the name.
            if typed.is_none()
                && let Some((inside, after)) = in_braces(rest.trim_start())
            {
                typed = Some(inside.trim().to_owned());
                rest = after;
            }
            let optional = typed.as_ref().is_some_and(|typed| typed.ends_with('='));
            if let Some(subject) = &mut subject {
                subject.optional |= optional;
            }
        }
        let text = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '-').trim_end().to_owned();
        Self { name, line, typed, subject, text }
    }
}

/// A line without the star that it begins with.
fn without_star(line: &str, first: bool) -> &str {
    if first {
        return line;
    }
    let trimmed = line.trim_start();
    match trimmed.strip_prefix('*') {
        // One blank belongs to the star; more indent code.
        Some(rest) => rest.strip_prefix(' ').unwrap_or(rest),
        None => line,
    }
}

fn tag_name(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'));
    &text[..end.unwrap_or(text.len())]
}

/// What stands in braces at the beginning of `text`, and what follows. A link is none of it.
fn in_braces(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('{').filter(|inner| !inner.trim_start().starts_with('@'))?;
    let mut depth = 1;
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&inner[..at], &inner[at + 1..]));
        }
    }
    None
}

/// The name at the beginning of `text`, perhaps in brackets with a default, and what follows.
fn about(text: &str) -> (Option<Subject>, &str) {
    if let Some(inner) = text.strip_prefix('[') {
        let mut depth = 1;
        for (at, c) in inner.char_indices() {
            match c {
                '[' => depth += 1,
                ']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let name = inner[..at].split('=').next().unwrap_or_default().trim().to_owned();
                let subject = (!name.is_empty()).then_some(Subject { name, optional: true });
                return (subject, &inner[at + 1..]);
            }
        }
    }
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '#' | '[' | ']');
    let text = text.strip_prefix("...").unwrap_or(text);
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let name = text[..end].trim_end_matches('.').to_owned();
    let subject = (!name.is_empty()).then_some(Subject { name, optional: false });
    (subject, &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tag: &Tag) -> String {
        let subject =
            tag.subject.as_ref().map(|it| format!("{}{}", it.name, if it.optional { "?" } else { "" }));
        format!("{} {:?} {:?} {:?}", tag.line, tag.typed.as_deref(), subject.as_deref(), tag.text)
    }

    #[test]
    fn a_comment_has_a_description_and_tags() {
        let text = "/**\n * Rings a bell.\n *\n * Twice {@link x}, mail a@b.\n * @param {string} name - The bell.\n *   Goes on.\n\
                    * @param [times=1] how often\n * @param {number=} pause\n * @returns {Promise<{a: 1}>} when done\n\
                    * @deprecated\n*/";
        let doc = Doc::parse(text, 10);
        assert_eq!(doc.description, "Rings a bell.\n\nTwice {@link x}, mail a@b.");
        let tags: Vec<_> = doc.tags.iter().map(|tag| format!("{} {}", tag.name, shown(tag))).collect();
        assert_eq!(
            tags,
            [
                r#"param 14 Some("string") Some("name") "The bell.\n  Goes on.""#,
                r#"param 16 None Some("times?") "how often""#,
                r#"param 17 Some("number=") Some("pause?") """#,
                r#"returns 18 Some("Promise<{a: 1}>") None "when done""#,
                r#"deprecated 19 None None """#,
            ]
        );
        assert_eq!(doc.tags(&["return", "returns"]).count(), 1);
    }

    #[test]
    fn names_may_have_dots_brackets_and_types_behind_them() {
        for (text, expected) in [
            ("options.size", r#"1 None Some("options.size") """#),
            ("[options.size=[1, 2]] x", r#"1 None Some("options.size?") "x""#),
            ("...rest - all", r#"1 None Some("rest") "all""#),
            ("name {string} text", r#"1 Some("string") Some("name") "text""#),
            ("name. Text", r#"1 None Some("name") "Text""#),
            ("{@link Foo} name", r#"1 None None "{@link Foo} name""#),
            ("{string", r#"1 None None "{string""#),
            ("", r#"1 None None """#),
        ] {
            let doc = Doc::parse(&format!("/** @param {text} */"), 1);
            assert_eq!(shown(&doc.tags[0]), expected, "{text}");
        }
    }

    #[test]
    fn code_is_no_tag() {
        let doc = Doc::parse(
            "/**\n * ```ts\n * @decorated\n * ```\n * @example\n * ```\n * @other\n *   deep\n * ```\n */",
            1,
        );
        assert_eq!(doc.description, "```ts\n@decorated\n```");
        assert_eq!(doc.tags.len(), 1);
        assert_eq!(doc.tags[0].text, "```\n@other\n  deep\n```");
        assert_eq!(Doc::parse("/***/", 1), Doc::default());
        assert_eq!(Doc::parse("/** One line. */", 1).description, "One line.");
    }
}
