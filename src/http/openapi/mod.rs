//! The description of all routes (OpenAPI 3.1). A handler of our own says what it takes and answers
//! (`utoipa::path`); the routes of the protocol are described in JSON beside their modules. What many have
//! in common stands in `shared.json`, and the rules here say where it belongs.

use serde_json::{Value, json};
use utoipa::openapi::OpenApi;

const SHARED: &str = include_str!("shared.json");
const PROTOCOL: [&str; 2] =
    [include_str!("../client_streams.json"), include_str!("../server_api/openapi.json")];

/// The answer for a status that a handler names and does not describe.
const ANSWERS: [(&str, &str); 12] = [
    ("304", "NotModified"),
    ("400", "BadRequest"),
    ("401", "Unauthorized"),
    ("403", "Forbidden"),
    ("404", "NotFound"),
    ("408", "TooSlow"),
    ("409", "Conflict"),
    ("410", "Gone"),
    ("413", "TooLarge"),
    ("421", "WrongHost"),
    ("429", "TooMany"),
    ("503", "Unavailable"),
];

/// The document, of which `own` is what the handlers say.
pub fn document(own: &OpenApi) -> Value {
    let mut document = serde_json::to_value(own).expect("the description is JSON");
    document["components"]["schemas"]
        .as_object_mut()
        .into_iter()
        .flatten()
        .for_each(|(_, s)| complete_answer(s));
    for part in PROTOCOL.into_iter().chain([SHARED]) {
        merge(&mut document, serde_json::from_str(part).expect("the description is JSON"));
    }
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let usual = document["security"].clone();
    for (_, methods) in document["paths"].as_object_mut().into_iter().flatten() {
        let methods = methods.as_object_mut().expect("methods");
        // GET implies it, and so does a probe by OPTIONS.
        methods.remove("head");
        methods.remove("options");
        methods.values_mut().for_each(|operation| complete(operation, &usual));
    }
    document
}

/// The methods that a route takes, as in `Allow`.
pub fn methods_of(document: &Value, path: &str) -> String {
    let methods = document["paths"][path].as_object().into_iter().flatten();
    methods.map(|(method, _)| method.to_uppercase()).collect::<Vec<_>>().join(", ")
}

/// Adds `from` to `into`, and takes its side where they differ.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

/// An answer has all its fields, also those that are null. (The schemas of bodies are inline, and a field
/// that may be absent says `nullable = false`.)
fn complete_answer(schema: &mut Value) {
    for kind in ["allOf", "oneOf"] {
        schema.get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten().for_each(complete_answer);
    }
    let is_null = |part: &Value| part["type"] == "null" || part == "null";
    let any_null = |parts: &Value| parts.as_array().is_some_and(|parts| parts.iter().any(is_null));
    let properties = schema["properties"].as_object().into_iter().flatten();
    let nullable = properties.filter(|(_, schema)| any_null(&schema["type"]) || any_null(&schema["oneOf"]));
    let nullable: Vec<Value> = nullable.map(|(name, _)| name.as_str().into()).collect();
    if !nullable.is_empty() {
        let required = schema.as_object_mut().expect("an object").entry("required").or_insert(json!([]));
        required.as_array_mut().expect("names").extend(nullable);
    }
}

/// Adds to `operation` what follows from who may call it and from what it takes.
fn complete(operation: &mut Value, usual: &Value) {
    let security = operation.get("security").unwrap_or(usual).as_array().cloned().unwrap_or_default();
    let open_to = |scheme| security.iter().any(|one| one.get(scheme).is_some());
    let mut parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let takes = |place| parameters.iter().any(|parameter| parameter["in"] == place);
    let common = [
        (takes("query") || operation.get("requestBody").is_some(), &["400"][..]),
        (takes("path"), &["404"]),
        (open_to("token"), &["401"]),
        (open_to("session"), &["403", "421", "503"]),
        (open_to("api_key"), &["401", "503"]),
    ];
    let responses = operation["responses"].as_object_mut().expect("responses");
    for status in common.iter().filter(|(applies, _)| *applies).flat_map(|(_, statuses)| *statuses) {
        responses.entry(*status).or_insert(json!({}));
    }
    if responses.contains_key("304") {
        parameters.push(json!({ "description": "#IfNoneMatch" }));
    }
    for (status, response) in responses {
        if *response == json!({}) {
            let (_, name) = ANSWERS.iter().find(|(known, _)| known == status).expect("it is in `ANSWERS`");
            response["description"] = format!("#{name}").into();
        }
        share("responses", response);
        // A header that is described is always sent.
        for (_, header) in response.get_mut("headers").and_then(Value::as_object_mut).into_iter().flatten() {
            header["required"] = true.into();
        }
    }
    for parameter in &mut parameters {
        share("parameters", parameter);
        // It may be absent, but never null.
        if let Some(first) = parameter["schema"]["type"].get(0).cloned() {
            parameter["schema"]["type"] = first;
        }
    }
    operation["parameters"] = if parameters.is_empty() { Value::Null } else { parameters.into() };
    operation["operationId"] = operation["operationId"].as_str().map(camel_case).into();
    operation.as_object_mut().expect("an operation").retain(|name, value| name != "tags" && !value.is_null());
}

/// `getThis` of `get_this`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
}

/// A part that is described as `#Name` is the shared one of this name.
fn share(kind: &str, part: &mut Value) {
    if let Some(name) = part["description"].as_str().and_then(|text| text.strip_prefix('#')) {
        *part = json!({ "$ref": format!("#/components/{kind}/{name}") });
    }
}
