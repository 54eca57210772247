//! What one file declares, imports and exports, read from its syntax alone.

use std::collections::{BTreeMap, HashMap};

use oxc_allocator::Allocator;
use oxc_ast::ast::{
    BindingPattern, Declaration as Syntax, ExportDefaultDeclarationKind, Expression,
    ImportDeclarationSpecifier, ModuleExportName, Program, Statement, TSModuleReference,
    TSNamespaceDeclarationBody, TSTypeName,
};
use oxc_parser::Parser;
use oxc_span::{GetSpan as _, SourceType, Span};

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

/// One name at the top of a file, or of a namespace in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub kind: Kind,
    /// Of the name, from 1.
    pub line: u32,
}

/// What an export stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A name of this file, declared or imported.
    Local(String),
    /// Something without a name.
    Unnamed(Kind),
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
        let mut reader = Reader { lines: Lines::of(text), module };
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

struct Reader {
    lines: Lines,
    module: Module,
}

impl Reader {
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
                            (&one.local, of(&specifier, "default".to_owned()))
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
                        let span = name.span();
                        self.export(exported_name(name), span, Target::All { specifier });
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
                for (name, span) in self.declare("", &export.declaration) {
                    self.export(name.clone(), span, Target::Local(name));
                }
            }
            Statement::ExportDefaultDeclaration(default) => self.default(&default.declaration),
            Statement::TSExportAssignment(assignment) => {
                let target = assigned(&assignment.expression);
                self.export("export=".to_owned(), assignment.expression.span(), target);
            }
            statement => {
                let Some(declaration) = statement.as_declaration() else { return };
                for (name, span) in self.declare("", declaration) {
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
        self.module.exports.entry(name).or_insert(Export { target, line });
    }

    fn default(&mut self, declaration: &ExportDefaultDeclarationKind<'_>) {
        let (kind, name) = match declaration {
            ExportDefaultDeclarationKind::FunctionDeclaration(function) => {
                (Kind::Function, function.id.as_ref())
            }
            ExportDefaultDeclarationKind::ClassDeclaration(class) => (Kind::Class, class.id.as_ref()),
            ExportDefaultDeclarationKind::TSInterfaceDeclaration(interface) => {
                (Kind::Interface, Some(&interface.id))
            }
            expression => {
                let target = expression.as_expression().map_or(Target::Unnamed(Kind::Variable), assigned);
                return self.export("default".to_owned(), expression.span(), target);
            }
        };
        let target = name.map_or(Target::Unnamed(kind), |name| {
            self.add("", &name.name, name.span, kind);
            Target::Local(name.name.to_string())
        });
        self.export("default".to_owned(), name.map_or(declaration.span(), |name| name.span), target);
    }

    /// Takes in what `syntax` declares in the namespace `outer`, and answers the names with their places.
    fn declare(&mut self, outer: &str, syntax: &Syntax<'_>) -> Vec<(String, Span)> {
        let (kind, id) = match syntax {
            Syntax::VariableDeclaration(variables) => {
                let mut names = Vec::new();
                for one in &variables.declarations {
                    bound(&one.id, &mut names);
                }
                for (name, span) in &names {
                    self.add(outer, name, *span, Kind::Variable);
                }
                return names;
            }
            Syntax::TSExternalModuleDeclaration(_) | Syntax::TSGlobalDeclaration(_) => return Vec::new(),
            Syntax::TSImportEqualsDeclaration(import) => {
                let target = match &import.module_reference {
                    TSModuleReference::ExternalModuleReference(module) => {
                        of(&module.expression.value, "export=".to_owned())
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
            Syntax::FunctionDeclaration(function) => (Kind::Function, function.id.as_ref()),
            Syntax::ClassDeclaration(class) => (Kind::Class, class.id.as_ref()),
            Syntax::TSTypeAliasDeclaration(alias) => (Kind::Type, Some(&alias.id)),
            Syntax::TSInterfaceDeclaration(interface) => (Kind::Interface, Some(&interface.id)),
            Syntax::TSEnumDeclaration(declared) => (Kind::Enum, Some(&declared.id)),
            Syntax::TSNamespaceDeclaration(namespace) => {
                self.namespace(&inner(outer, &namespace.id.name), &namespace.body, namespace.declare);
                (Kind::Namespace, Some(&namespace.id))
            }
        };
        let Some(id) = id else { return Vec::new() };
        self.add(outer, &id.name, id.span, kind);
        vec![(id.name.to_string(), id.span)]
    }

    /// Members of the namespace called `name`.
    fn namespace(&mut self, name: &str, body: &TSNamespaceDeclarationBody<'_>, ambient: bool) {
        let block = match body {
            TSNamespaceDeclarationBody::TSModuleBlock(block) => block,
            // `namespace A.B {}` exports B from A.
            TSNamespaceDeclarationBody::TSNamespaceDeclaration(nested) => {
                self.add(name, &nested.id.name, nested.id.span, Kind::Namespace);
                self.member(name, &nested.id.name);
                return self.namespace(&inner(name, &nested.id.name), &nested.body, ambient);
            }
        };
        let implicit = ambient && !has_export_statement(&block.body);
        for statement in &block.body {
            let (declaration, exported) = match statement {
                Statement::ExportDeclaration(export) => (&export.declaration, true),
                Statement::ExportNamedDeclaration(named) => {
                    for one in &named.specifiers {
                        self.member(name, &exported_name(&one.exported));
                    }
                    continue;
                }
                statement => match statement.as_declaration() {
                    Some(declaration) => (declaration, implicit),
                    None => continue,
                },
            };
            for (member, _) in self.declare(name, declaration) {
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

    fn add(&mut self, outer: &str, name: &str, span: Span, kind: Kind) {
        let declared = Declared { kind, line: self.lines.at(span) };
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

/// What an exported expression stands for.
fn assigned(expression: &Expression<'_>) -> Target {
    match expression {
        Expression::Identifier(name) => Target::Local(name.name.to_string()),
        Expression::StaticMemberExpression(member) => match assigned(&member.object) {
            Target::Local(object) => Target::Local(format!("{object}.{}", member.property.name)),
            _ => Target::Unnamed(Kind::Variable),
        },
        Expression::FunctionExpression(_) | Expression::ArrowFunctionExpression(_) => {
            Target::Unnamed(Kind::Function)
        }
        Expression::ClassExpression(_) => Target::Unnamed(Kind::Class),
        _ => Target::Unnamed(Kind::Variable),
    }
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
