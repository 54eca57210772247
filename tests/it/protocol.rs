//! `docs/PROTOCOL.md` is true: its examples are taken out and played against the real binary, each
//! with a client of its own. `…` stands for any value.

use std::path::Path;

use campanile::auth::{NewToken, mint};
use serde_json::Value;

use crate::support::client::Request;
use crate::support::process::{API_KEY, Gateway, Home, JWT_SECRET, on_postgres, on_sqlite};
use crate::support::websocket::{Client, Received};

#[test]
fn the_examples_are_true_on_sqlite() {
    on_sqlite(play);
}

#[test]
fn the_examples_are_true_on_postgres() {
    on_postgres(play);
}

async fn play(home: Home) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/PROTOCOL.md");
    let text = std::fs::read_to_string(path).expect("the document is there");
    let config: Vec<&str> = fences(&text, "toml play").collect();
    home.configure(&config.join("\n"));
    let gateway = Gateway::start(&home).await;
    let mut examples = 0;
    for example in fences(&text, "play") {
        Scene::new(&gateway).await.play(example).await;
        examples += 1;
    }
    assert!(examples >= 10, "{examples} examples");
    gateway.stop().await;
}

/// What stands between a line of three backticks with this word and the next one.
fn fences<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = &'t str> {
    text.split("\n```").skip(1).step_by(2).filter_map(move |fence| {
        let (info, body) = fence.split_once('\n')?;
        (info == word).then_some(body)
    })
}

struct Scene<'g> {
    gateway: &'g Gateway,
    client: Client,
    token: String,
    /// The answer that a request got, until the example has said what it must be.
    answered: Option<(u16, Value)>,
}

impl<'g> Scene<'g> {
    async fn new(gateway: &'g Gateway) -> Self {
        let claims = NewToken { user: "ana".into(), ..NewToken::default() };
        let token = mint(JWT_SECRET, &claims, chrono::Utc::now()).expect("a token");
        Self { gateway, client: Client::open(gateway.address).await, token, answered: None }
    }

    async fn play(&mut self, example: &str) {
        let mut lines = example.lines().peekable();
        while let Some(line) = lines.next() {
            let (sign, rest) = line.split_once(' ').expect(line);
            match sign {
                ">" => self.client.send_text(&rest.replace("TOKEN", &self.token)).await,
                "<" if rest.starts_with("close ") => {
                    let (code, reason) = self.client.closed().await;
                    assert_eq!(format!("close {code} {reason}"), rest, "{example}");
                }
                "<" => self.hears(vec![json(rest)], example).await,
                "<~" => {
                    let mut expected = vec![json(rest)];
                    while let Some(next) = lines.next_if(|line| line.starts_with("<~ ")) {
                        expected.push(json(&next[3..]));
                    }
                    self.hears(expected, example).await;
                }
                "POST" => {
                    let (path, body) = rest.split_once(' ').expect(line);
                    let request = Request::post(path).header("X-API-Key", API_KEY).json(&json(body));
                    let answer = request.send(self.gateway.address).await;
                    self.answered = Some((answer.status, answer.json()));
                }
                status => {
                    let (was, body) = self.answered.take().expect("a request before the answer");
                    let fits = was.to_string() == status && fits(&json(rest), &body);
                    assert!(fits, "{was} {body} instead of\n{line}\nin\n{example}");
                }
            }
        }
        assert!(self.answered.is_none(), "an answer that nobody looks at in\n{example}");
    }

    /// As many messages come as are expected, in any order.
    async fn hears(&mut self, mut expected: Vec<Value>, example: &str) {
        while !expected.is_empty() {
            let heard = match self.client.next().await {
                Received::Message(message) => message,
                other => panic!("{other:?} instead of {expected:?} in\n{example}"),
            };
            let place = expected.iter().position(|one| fits(one, &heard));
            let place = place.unwrap_or_else(|| panic!("{heard} instead of {expected:?} in\n{example}"));
            expected.remove(place);
        }
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text} is no JSON: {error}"))
}

/// Whether `given` is `expected`, where `…` stands for anything.
fn fits(expected: &Value, given: &Value) -> bool {
    match (expected, given) {
        (Value::String(any), _) if any == "…" => true,
        (Value::Object(expected), Value::Object(given)) => {
            expected.len() == given.len()
                && expected.iter().all(|(key, one)| given.get(key).is_some_and(|other| fits(one, other)))
        }
        (Value::Array(expected), Value::Array(given)) => {
            expected.len() == given.len() && expected.iter().zip(given).all(|(one, other)| fits(one, other))
        }
        _ => expected == given,
    }
}
