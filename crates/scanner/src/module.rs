//! What one file declares, imports and exports, read from its syntax alone.

use std::collections::{BTreeMap, HashMap};

use oxc_allocator::Allocator;
use oxc_ast::ast::{
    BindingPattern, Class, Comment, Declaration as Syntax, ExportDefaultDeclarationKind, Expression,
    ImportDeclarationSpecifier, ModuleExportName, Program, Statement, TSModuleReference,
    TSNamespaceDeclarationBody, TSTypeName, VariableDeclaration,
};
use oxc_parser::Parser;
use oxc_span::{GetSpan as _, SourceType, Span};

use crate::doc::Doc;
use crate::signature::{self, Signature};

/// What a default export is called.
pub(crate) const DEFAULT: &str = "default";
/// What `export =` is called.
pub(crate) const ASSIGNED: &str = "export=";

/// What a declaration declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    // In this order the first one speaks for several of one name: values before types.
    Class,
    Function,
    Enum,
    Variable,
    Namespace,
    Interface,
    Type,
}

impl Kind {
    /// As reports name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Function => "function",
            Self::Enum => "enum",
            Self::Variable => "variable",
            Self::Namespace => "namespace",
            Self::Interface => "interface",
            Self::Type => "type",
        }
    }
}

/// One declaration at the top of a file, or of a namespace in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub kind: Kind,
    /// Of the name, from 1.
    pub line: u32,
    /// The doc comment before it; of a class also those before its constructors.
    pub docs: Vec<Doc>,
    /// How it is called: one for each constructor of a class that others may call, none if it is no function
    /// where it is written.
    pub signatures: Vec<Signature>,
}

/// What an export stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A name of this file, declared or imported.
    Local(String),
    /// Something without a name.
    Unnamed(Box<Declared>),
    /// A name of another module.
    Of { specifier: String, name: String },
    /// All of another module under one name.
    All { specifier: String },
}

/// One exported name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    pub target: Target,
    /// Of the name, from 1.
    pub line: u32,
    /// The doc comment before the statement, if it is `export * as`.
    pub doc: Option<Doc>,
}

/// A file. Names that a namespace declares are written with dots.
#[derive(Debug, Default)]
pub struct Module {
    /// By name.
    pub exports: BTreeMap<String, Export>,
    /// The modules of `export *`, in their order.
    pub stars: Vec<String>,
    /// Names that stand for something of another module.
    pub imports: HashMap<String, Target>,
    /// All declarations of a name.
    pub declared: HashMap<String, Vec<Declared>>,
    /// Members that a namespace exports.
    pub members: HashMap<String, Vec<String>>,
    /// Why some of it may be missing: it does not parse everywhere.
    pub broken: Option<String>,
}

/// The file does not parse, and this is why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it does not parse: {0}")]
pub struct ParseError(String);

impl Module {
    /// Reads a file with this path and text. Needs a stack that is deep enough for what is nested in it.
    pub fn parse(path: &str, text: &str) -> Result<Self, ParseError> {
        let kind = SourceType::from_path(path).map_err(|error| ParseError(error.to_string()))?;
        let allocator = Allocator::default();
        let parsed = Parser::new(&allocator, text, kind).parse();
        let broken = parsed.diagnostics.first().map(|error| error.message.to_string());
        if parsed.panicked {
            return Err(ParseError(broken.unwrap_or_default()));
        }
        let module = Self { broken, ..Self::default() };
        let mut reader = Reader { lines: Lines::of(text), docs: docs(&parsed.program), text, module };
        reader.program(&parsed.program);
        Ok(reader.module)
    }

    /// The declaration of a name that speaks for all of them.
    pub fn main_declaration(&self, name: &str) -> Option<&Declared> {
        self.declared.get(name)?.iter().min_by_key(|declared| declared.kind)
    }
}

/// Where lines begin.
struct Lines(Vec<u32>);

impl Lines {
    fn of(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self([0].into_iter().chain(ends.map(|(at, _)| at as u32 + 1)).collect())
    }

    fn at(&self, span: Span) -> u32 {
        self.0.partition_point(|begin| *begin <= span.start) as u32
    }
}

struct Reader<'t> {
    lines: Lines,
    text: &'t str,
    /// Doc comments, by where begins what they stand before.
    docs: HashMap<u32, Span>,
    module: Module,
}

impl Reader<'_> {
    fn program(&mut self, program: &Program<'_>) {
        let is_module = program.body.iter().any(Statement::is_module_declaration);
        // In declarations everything is exported, unless something is exported by a statement of its own.
        let implicit = program.source_type.is_typescript_definition()
            && is_module
            && !has_export_statement(&program.body);
        for statement in &program.body {
            self.statement(statement, implicit);
        }
    }

    fn statement(&mut self, statement: &Statement<'_>, implicit: bool) {
        match statement {
            Statement::ImportDeclaration(import) => {
                let specifier = import.source.value.to_string();
                for one in import.specifiers.iter().flatten() {
                    let (local, target) = match one {
                        ImportDeclarationSpecifier::ImportSpecifier(one) => {
                            (&one.local, of(&specifier, exported_name(&one.imported)))
                        }
                        ImportDeclarationSpecifier::ImportDefaultSpecifier(one) => {
                            (&one.local, of(&specifier, DEFAULT.to_owned()))
                        }
                        ImportDeclarationSpecifier::ImportNamespaceSpecifier(one) => {
                            (&one.local, Target::All { specifier: specifier.clone() })
                        }
                    };
                    self.module.imports.insert(local.name.to_string(), target);
                }
            }
            Statement::ExportAllDeclaration(all) => {
                let specifier = all.source.value.to_string();
                match &all.exported {
                    Some(name) => {
                        let doc = self.doc_at(all.span.start);
                        self.export(exported_name(name), name.span(), Target::All { specifier });
                        if let Some(export) = self.module.exports.get_mut(name.name().as_str()) {
                            export.doc = doc;
                        }
                    }
                    None => self.module.stars.push(specifier),
                }
            }
            Statement::ExportFromDeclaration(from) => {
                for one in &from.specifiers {
                    let target = of(&from.source.value, exported_name(&one.local));
                    self.export(exported_name(&one.exported), one.exported.span(), target);
                }
            }
            Statement::ExportNamedDeclaration(named) => {
                for one in &named.specifiers {
                    let target = Target::Local(exported_name(&one.local));
                    self.export(exported_name(&one.exported), one.exported.span(), target);
                }
            }
            Statement::ExportDeclaration(export) => {
                for (name, span) in self.declare("", &export.declaration, export.span.start) {
                    self.export(name.clone(), span, Target::Local(name));
                }
            }
            Statement::ExportDefaultDeclaration(default) => {
                self.default(&default.declaration, default.span.start)
            }
            Statement::TSExportAssignment(assignment) => {
                let target = self.assigned(&assignment.expression, assignment.span.start);
                self.export(ASSIGNED.to_owned(), assignment.expression.span(), target);
            }
            statement => {
                let Some(declaration) = statement.as_declaration() else { return };
                for (name, span) in self.declare("", declaration, declaration.span().start) {
                    if implicit {
                        self.export(name.clone(), span, Target::Local(name));
                    }
                }
            }
        }
    }

    fn export(&mut self, name: String, span: Span, target: Target) {
        let line = self.lines.at(span);
        // Overloads and merged declarations export their name each time.
        self.module.exports.entry(name).or_insert(Export { target, line, doc: None });
    }

    /// The doc comment before what begins at `start`.
    fn doc_at(&self, start: u32) -> Option<Doc> {
        let span = self.docs.get(&start)?;
        Some(Doc::parse(span.source_text(self.text), self.lines.at(*span)))
    }

    fn declared(&self, kind: Kind, name: Span, start: u32, signatures: Vec<Signature>) -> Declared {
        let docs = self.doc_at(start).into_iter().collect();
        Declared { kind, line: self.lines.at(name), docs, signatures }
    }

    fn class(&self, class: &Class<'_>, name: Span, start: u32) -> Declared {
        let mut declared = self.declared(Kind::Class, name, start, Signature::of_constructors(class));
        declared
            .docs
            .extend(signature::constructors(class).filter_map(|method| self.doc_at(method.span.start)));
        declared
    }

    fn default(&mut self, declaration: &ExportDefaultDeclarationKind<'_>, start: u32) {
        let span = declaration.span();
        let (declared, name) = match declaration {
            ExportDefaultDeclarationKind::FunctionDeclaration(function) => {
                let signatures = vec![Signature::of_function(function)];
                let name = function.id.as_ref();
                (self.declared(Kind::Function, name.map_or(span, |name| name.span), start, signatures), name)
            }
            ExportDefaultDeclarationKind::ClassDeclaration(class) => {
                let name = class.id.as_ref();
                (self.class(class, name.map_or(span, |name| name.span), start), name)
            }
            ExportDefaultDeclarationKind::TSInterfaceDeclaration(interface) => {
                let name = &interface.id;
                (self.declared(Kind::Interface, name.span, start, Vec::new()), Some(name))
            }
            expression => {
                let target = expression.as_expression().map(|expression| self.assigned(expression, start));
                let unnamed =
                    || Target::Unnamed(Box::new(self.declared(Kind::Variable, span, start, Vec::new())));
                let target = target.unwrap_or_else(unnamed);
                return self.export(DEFAULT.to_owned(), span, target);
            }
        };
        match name {
            Some(name) => {
                self.add("", &name.name, declared);
                self.export(DEFAULT.to_owned(), name.span, Target::Local(name.name.to_string()));
            }
            None => self.export(DEFAULT.to_owned(), span, Target::Unnamed(Box::new(declared))),
        }
    }

    /// What an exported expression stands for.
    fn assigned(&self, expression: &Expression<'_>, start: u32) -> Target {
        if let Some(path) = dotted_path(expression) {
            return Target::Local(path);
        }
        let span = expression.span();
        Target::Unnamed(Box::new(match expression {
            Expression::ClassExpression(class) => self.class(class, span, start),
            value => match Signature::of_value(value) {
                Some(signature) => self.declared(Kind::Function, span, start, vec![signature]),
                None => self.declared(Kind::Variable, span, start, Vec::new()),
            },
        }))
    }

    /// Takes in what `syntax` declares in the namespace `outer` by a statement that begins at `start`, and answers
    /// the names with their places.
    fn declare(&mut self, outer: &str, syntax: &Syntax<'_>, start: u32) -> Vec<(String, Span)> {
        let (id, declared) = match syntax {
            Syntax::VariableDeclaration(variables) => return self.variables(outer, variables, start),
            Syntax::TSExternalModuleDeclaration(_) | Syntax::TSGlobalDeclaration(_) => return Vec::new(),
            Syntax::TSImportEqualsDeclaration(import) => {
                let target = match &import.module_reference {
                    TSModuleReference::ExternalModuleReference(module) => {
                        of(&module.expression.value, ASSIGNED.to_owned())
                    }
                    TSModuleReference::IdentifierReference(name) => Target::Local(name.name.to_string()),
                    TSModuleReference::QualifiedName(name) => {
                        Target::Local(format!("{}.{}", dotted(&name.left), name.right.name))
                    }
                };
                let name = import.id.name.to_string();
                self.module.imports.insert(inner(outer, &name), target);
                return vec![(name, import.id.span)];
            }
            Syntax::FunctionDeclaration(function) => {
                let Some(id) = &function.id else { return Vec::new() };
                (id, self.declared(Kind::Function, id.span, start, vec![Signature::of_function(function)]))
            }
            Syntax::ClassDeclaration(class) => {
                let Some(id) = &class.id else { return Vec::new() };
                (id, self.class(class, id.span, start))
            }
            Syntax::TSTypeAliasDeclaration(alias) => {
                (&alias.id, self.declared(Kind::Type, alias.id.span, start, Vec::new()))
            }
            Syntax::TSInterfaceDeclaration(interface) => {
                (&interface.id, self.declared(Kind::Interface, interface.id.span, start, Vec::new()))
            }
            Syntax::TSEnumDeclaration(found) => {
                (&found.id, self.declared(Kind::Enum, found.id.span, start, Vec::new()))
            }
            Syntax::TSNamespaceDeclaration(namespace) => {
                self.namespace(&inner(outer, &namespace.id.name), &namespace.body, namespace.declare);
                (&namespace.id, self.declared(Kind::Namespace, namespace.id.span, start, Vec::new()))
            }
        };
        self.add(outer, &id.name, declared);
        vec![(id.name.to_string(), id.span)]
    }

    fn variables(
        &mut self,
        outer: &str,
        variables: &VariableDeclaration<'_>,
        start: u32,
    ) -> Vec<(String, Span)> {
        let mut names = Vec::new();
        for one in &variables.declarations {
            let mut bound_here = Vec::new();
            bound(&one.id, &mut bound_here);
            let typed = one.type_annotation.as_deref().and_then(Signature::of_type);
            let signature = typed.or_else(|| Signature::of_value(one.init.as_ref()?));
            let own = self.docs.contains_key(&one.span.start).then_some(one.span.start);
            for (name, span) in &bound_here {
                let signatures =
                    signature.iter().filter(|_| one.id.is_binding_identifier()).cloned().collect();
                let declared = self.declared(Kind::Variable, *span, own.unwrap_or(start), signatures);
                self.add(outer, name, declared);
            }
            names.append(&mut bound_here);
        }
        names
    }

    /// Members of the namespace called `name`.
    fn namespace(&mut self, name: &str, body: &TSNamespaceDeclarationBody<'_>, ambient: bool) {
        let block = match body {
            TSNamespaceDeclarationBody::TSModuleBlock(block) => block,
            // `namespace A.B {}` exports B from A.
            TSNamespaceDeclarationBody::TSNamespaceDeclaration(nested) => {
                let declared = self.declared(Kind::Namespace, nested.id.span, nested.span.start, Vec::new());
                self.add(name, &nested.id.name, declared);
                self.member(name, &nested.id.name);
                return self.namespace(&inner(name, &nested.id.name), &nested.body, ambient);
            }
        };
        let implicit = ambient && !has_export_statement(&block.body);
        for statement in &block.body {
            let (declaration, start, exported) = match statement {
                Statement::ExportDeclaration(export) => (&export.declaration, export.span.start, true),
                Statement::ExportNamedDeclaration(named) => {
                    for one in &named.specifiers {
                        self.member(name, &exported_name(&one.exported));
                    }
                    continue;
                }
                statement => match statement.as_declaration() {
                    Some(declaration) => (declaration, declaration.span().start, implicit),
                    None => continue,
                },
            };
            for (member, _) in self.declare(name, declaration, start) {
                if exported {
                    self.member(name, &member);
                }
            }
        }
    }

    fn member(&mut self, namespace: &str, name: &str) {
        let members = self.module.members.entry(namespace.to_owned()).or_default();
        if !members.iter().any(|member| member == name) {
            members.push(name.to_owned());
        }
    }

    fn add(&mut self, outer: &str, name: &str, declared: Declared) {
        self.module.declared.entry(inner(outer, name)).or_default().push(declared);
    }
}

/// `export {…}`, `export * …`, `export =` and `export default` of an expression.
fn has_export_statement(body: &[Statement<'_>]) -> bool {
    body.iter().any(|statement| match statement {
        Statement::ExportNamedDeclaration(_)
        | Statement::ExportFromDeclaration(_)
        | Statement::ExportAllDeclaration(_)
        | Statement::TSExportAssignment(_) => true,
        Statement::ExportDefaultDeclaration(default) => default.declaration.is_expression(),
        _ => false,
    })
}

fn of(specifier: &str, name: String) -> Target {
    Target::Of { specifier: specifier.to_owned(), name }
}

fn exported_name(name: &ModuleExportName<'_>) -> String {
    name.name().to_string()
}

fn inner(outer: &str, name: &str) -> String {
    if outer.is_empty() { name.to_owned() } else { format!("{outer}.{name}") }
}

fn dotted(name: &TSTypeName<'_>) -> String {
    match name {
        TSTypeName::IdentifierReference(name) => name.name.to_string(),
        TSTypeName::QualifiedName(name) => format!("{}.{}", dotted(&name.left), name.right.name),
        TSTypeName::ThisExpression(_) => "this".to_owned(),
    }
}

/// A name, perhaps with members of it.
fn dotted_path(expression: &Expression<'_>) -> Option<String> {
    match expression {
        Expression::Identifier(name) => Some(name.name.to_string()),
        Expression::StaticMemberExpression(member) => {
            Some(format!("{}.{}", dotted_path(&member.object)?, member.property.name))
        }
        _ => None,
    }
}

/// The last doc comment before each place that has one.
fn docs(program: &Program<'_>) -> HashMap<u32, Span> {
    let is_doc = |comment: &&Comment| {
        let text = comment.span.source_text(program.source_text);
        comment.is_leading() && text.starts_with("/**") && text.len() > 4
    };
    program.comments.iter().filter(is_doc).map(|comment| (comment.attached_to, comment.span)).collect()
}

/// The names that a pattern binds.
fn bound(pattern: &BindingPattern<'_>, names: &mut Vec<(String, Span)>) {
    match pattern {
        BindingPattern::BindingIdentifier(id) => names.push((id.name.to_string(), id.span)),
        BindingPattern::ObjectPattern(object) => {
            object.properties.iter().for_each(|property| bound(&property.value, names));
            object.rest.iter().for_each(|rest| bound(&rest.argument, names));
        }
        BindingPattern::ArrayPattern(array) => {
            array.elements.iter().flatten().for_each(|element| bound(element, names));
            array.rest.iter().for_each(|rest| bound(&rest.argument, names));
        }
        BindingPattern::AssignmentPattern(assignment) => bound(&assignment.left, names),
    }
}

#[cfg(test)]
mod tests;
