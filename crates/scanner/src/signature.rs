//! What a function takes and gives back, as far as its documentation has to say something about it.

use oxc_ast::ast::{
    ArrowFunctionBody, BindingPattern, Class, ClassElement, Expression, FormalParameters, Function,
    FunctionBody, MethodDefinition, MethodDefinitionKind, Statement, TSAccessibility, TSType,
    TSTypeAnnotation, TSTypeName,
};

/// One way to call something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    /// Without `this`.
    pub params: Vec<Param>,
    /// It gives back something that can be described.
    pub returns: bool,
    /// It is no declaration alone.
    pub has_body: bool,
}

/// A parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// `None` if it is taken apart where it stands.
    pub name: Option<String>,
}

impl Signature {
    pub(crate) fn of_function(function: &Function<'_>) -> Self {
        let body = function.body.as_deref();
        let annotated = function.return_type.as_deref().map(gives_something);
        Self {
            params: params(&function.params),
            returns: annotated.unwrap_or_else(|| body.is_some_and(returns_a_value)),
            has_body: body.is_some(),
        }
    }

    /// Of a value that is a function where it is written.
    pub(crate) fn of_value(value: &Expression<'_>) -> Option<Self> {
        match value {
            Expression::FunctionExpression(function) => Some(Self::of_function(function)),
            Expression::ArrowFunctionExpression(arrow) => {
                let annotated = arrow.return_type.as_deref().map(gives_something);
                let returns = || match &arrow.body {
                    ArrowFunctionBody::FunctionBody(body) => returns_a_value(body),
                    _ => true,
                };
                let returns = annotated.unwrap_or_else(returns);
                Some(Self { params: params(&arrow.params), returns, has_body: true })
            }
            Expression::ParenthesizedExpression(inner) => Self::of_value(&inner.expression),
            Expression::TSAsExpression(inner) => Self::of_value(&inner.expression),
            Expression::TSSatisfiesExpression(inner) => Self::of_value(&inner.expression),
            _ => None,
        }
    }

    /// Of a type that is a function where it is written.
    pub(crate) fn of_type(annotation: &TSTypeAnnotation<'_>) -> Option<Self> {
        let mut found = &annotation.type_annotation;
        while let TSType::TSParenthesizedType(inner) = found {
            found = &inner.type_annotation;
        }
        let TSType::TSFunctionType(function) = found else { return None };
        let returns = gives_something(&function.return_type);
        Some(Self { params: params(&function.params), returns, has_body: false })
    }

    /// Of the constructors of a class that others may call. Nothing is said of what they give back.
    pub(crate) fn of_constructors(class: &Class<'_>) -> Vec<Self> {
        let open = constructors(class).filter(|method| {
            !matches!(method.accessibility, Some(TSAccessibility::Private | TSAccessibility::Protected))
        });
        let signatures = open.map(|method| Self { returns: false, ..Self::of_function(&method.value) });
        signatures.collect()
    }
}

pub(crate) fn constructors<'c, 'a>(class: &'c Class<'a>) -> impl Iterator<Item = &'c MethodDefinition<'a>> {
    class.body.body.iter().filter_map(|element| match element {
        ClassElement::MethodDefinition(method) if method.kind == MethodDefinitionKind::Constructor => {
            Some(&**method)
        }
        _ => None,
    })
}

/// The signatures that others see: of overloads those without a body.
pub(crate) fn visible(mut signatures: Vec<Signature>) -> Vec<Signature> {
    if signatures.iter().any(|signature| !signature.has_body) {
        signatures.retain(|signature| !signature.has_body);
    }
    signatures
}

fn params(params: &FormalParameters<'_>) -> Vec<Param> {
    let items = params.items.iter().map(|param| &param.pattern);
    let all = items.chain(params.rest.iter().map(|rest| &rest.rest.argument));
    all.map(|pattern| Param { name: name_of(pattern) }).collect()
}

fn name_of(pattern: &BindingPattern<'_>) -> Option<String> {
    match pattern {
        BindingPattern::BindingIdentifier(id) => Some(id.name.to_string()),
        BindingPattern::AssignmentPattern(assignment) => name_of(&assignment.left),
        BindingPattern::ObjectPattern(_) | BindingPattern::ArrayPattern(_) => None,
    }
}

fn gives_something(annotation: &TSTypeAnnotation<'_>) -> bool {
    let mut found = &annotation.type_annotation;
    loop {
        found = match found {
            TSType::TSVoidKeyword(_) | TSType::TSUndefinedKeyword(_) | TSType::TSNeverKeyword(_) => {
                return false;
            }
            TSType::TSTypePredicate(predicate) => return !predicate.asserts,
            TSType::TSParenthesizedType(inner) => &inner.type_annotation,
            TSType::TSTypeReference(reference) => {
                let is_promise = matches!(&reference.type_name,
                    TSTypeName::IdentifierReference(name) if name.name == "Promise");
                let mut arguments = reference.type_arguments.iter().flat_map(|arguments| &arguments.params);
                match arguments.next() {
                    Some(inner) if is_promise => inner,
                    _ => return true,
                }
            }
            _ => return true,
        };
    }
}

/// Whether some `return` of a body has a value, those of inner functions apart.
fn returns_a_value(body: &FunctionBody<'_>) -> bool {
    let mut waiting: Vec<&Statement<'_>> = body.statements.iter().collect();
    while let Some(statement) = waiting.pop() {
        match statement {
            Statement::ReturnStatement(found) if found.argument.is_some() => return true,
            Statement::BlockStatement(block) => waiting.extend(&block.body),
            Statement::IfStatement(branch) => {
                waiting.push(&branch.consequent);
                waiting.extend(&branch.alternate);
            }
            Statement::ForStatement(each) => waiting.push(&each.body),
            Statement::ForInStatement(each) => waiting.push(&each.body),
            Statement::ForOfStatement(each) => waiting.push(&each.body),
            Statement::WhileStatement(each) => waiting.push(&each.body),
            Statement::DoWhileStatement(each) => waiting.push(&each.body),
            Statement::LabeledStatement(labeled) => waiting.push(&labeled.body),
            Statement::WithStatement(with) => waiting.push(&with.body),
            Statement::SwitchStatement(switch) => {
                waiting.extend(switch.cases.iter().flat_map(|case| &case.consequent));
            }
            Statement::TryStatement(attempt) => {
                waiting.extend(&attempt.block.body);
                waiting.extend(attempt.handler.iter().flat_map(|handler| &handler.body.body));
                waiting.extend(attempt.finalizer.iter().flat_map(|finalizer| &finalizer.body));
            }
            _ => {}
        }
    }
    false
}
