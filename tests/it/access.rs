//! Who may do what, as seen from outside: a row is a token and a channel, with the answer that each
//! action gets over each transport that offers it. The rule itself has a larger table of its own;
//! this one shows that every endpoint applies it.

use serde_json::{Value, json};

use crate::support::app::token_by;
use crate::support::client::Request;
use crate::support::process::{Gateway, JWT_SECRET, on_sqlite};
use crate::support::sse::Stream;
use crate::support::websocket::{Client, Received};

const NAMESPACES: &str = "
[client]
allow_anonymous_connect_without_token = true
user_connection_limit = 0
[limits]
polls_per_minute = 100000
[channel.without_namespace]
history_size = 10
history_ttl = \"1h\"
presence = true
[[channel.namespaces]]
name = \"closed\"
[[channel.namespaces]]
name = \"open\"
history_size = 10
history_ttl = \"1h\"
presence = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_client = true
allow_presence_for_client = true
[[channel.namespaces]]
name = \"public\"
history_size = 10
history_ttl = \"1h\"
presence = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
allow_presence_for_client = true
allow_presence_for_anonymous = true
[[channel.namespaces]]
name = \"inside\"
history_size = 10
history_ttl = \"1h\"
presence = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_history_for_subscriber = true
allow_presence_for_subscriber = true
[[channel.namespaces]]
name = \"dialog\"
allow_user_limited_channels = true
";

/// Who comes. `ana` has the owner acme and the repository other/one, `bob` has nothing, `root` is an
/// admin. `eve` has what stands in brackets: a channel in `channels` of a repository she may see by
/// nothing else, or capabilities.
fn claims(who: &str) -> Option<Value> {
    let caps = |channels: &str, allow: &[&str]| json!({ "sub": "eve", "caps": [{ "channels": [channels], "allow": allow }] });
    Some(match who {
        "nobody" => return None,
        "anon" => json!({}),
        "ana" => json!({ "sub": "ana", "orgs": ["acme"], "repos": ["other/one"] }),
        "root" => json!({ "sub": "root", "scope": "admin" }),
        "eve[sub]" => caps("repo:acme/*", &["sub"]),
        "eve[hst]" => caps("repo:acme/*", &["hst"]),
        "eve[all]" => caps("*", &["sub", "pub", "hst", "prs"]),
        "eve[pub]" => caps("closed:*", &["pub"]),
        user => json!({ "sub": user }),
    })
}

/// The columns: over WebSocket subscribe, and the other three while not subscribed, then while
/// subscribed (if that went well); the status of a stream; the status of a poll.
///
/// `token` behind a channel is a subscription token for it.
const TABLE: &str = "
# who       channel                   | subscribe | publish history presence | subscribed: the same | SSE  poll

# Built-in channels: by claims alone, nobody publishes, nobody sees who is there.
ana         repo:acme/api             | yes       | 103 yes 108              | 103 yes 108          | 200  200
ana         repo:other/one            | yes       | 103 yes 108              | 103 yes 108          | 200  200
ana         repo:other/two            | 103       | 103 103 108              | -                    | 403  403
ana         org:acme                  | yes       | 103 yes 108              | 103 yes 108          | 200  200
ana         org:Acme                  | 103       | 103 103 108              | -                    | 403  403
ana         db:orders                 | 103       | 103 103 108              | -                    | 403  403
ana         JOB                       | 103       | 103 103 108              | -                    | 403  403
ana         BUILD                     | 103       | 103 103 108              | -                    | 403  403
bob         repo:acme/api             | 103       | 103 103 108              | -                    | 403  403
bob         repo:acme/api token       | yes       | 103 103 108              | 103 yes 108          | 403  403
anon        org:acme                  | 103       | 103 103 108              | -                    | 403  403
nobody      org:acme                  | 103       | 103 103 108              | -                    | 401  401
root        repo:acme/api             | yes       | 103 yes 108              | 103 yes 108          | 200  200
root        org:whoever               | yes       | 103 yes 108              | 103 yes 108          | 200  200
root        JOB                       | 103       | 103 103 108              | -                    | 403  403
eve[sub]    repo:acme/api             | yes       | 103 yes 108              | 103 yes 108          | 200  200
eve[sub]    repo:acme2/api            | 103       | 103 103 108              | -                    | 403  403
eve[hst]    repo:acme/api             | 103       | 103 yes 108              | -                    | 403  200
eve[all]    repo:acme/api             | yes       | 103 yes 108              | 103 yes 108          | 200  200
eve[all]    BUILD                     | 103       | 103 103 108              | -                    | 403  403

# Names that cannot be.
ana         repo:acme                 | 107       | 107 107 107              | -                    | 400  400
ana         repo:acme/a/b             | 107       | 107 107 107              | -                    | 400  400
root        $org:acme                 | 107       | 107 107 107              | -                    | 400  400
root        job:1                     | 107       | 107 107 107              | -                    | 400  400

# Personal channels: that user alone.
ana         #ana                      | yes       | 103 yes yes              | 103 yes yes          | 200  200
ana         open:#ana                 | yes       | yes yes yes              | yes yes yes          | 200  200
ana         #bob                      | 103       | 103 103 103              | -                    | 403  403
ana         #bob token                | 103       | 103 103 103              | -                    | 403  403
root        #ana                      | 103       | 103 103 103              | -                    | 403  403
eve[all]    #ana                      | 103       | 103 103 103              | -                    | 403  403
anon        #ana                      | 103       | 103 103 103              | -                    | 403  403
nobody      #ana                      | 103       | 103 103 103              | -                    | 401  401

# Configured namespaces: what the operator opened, to admins as to everybody.
bob         closed:a                  | 103       | 103 108 108              | -                    | 403  404
bob         closed:a token            | yes       | 103 108 108              | 103 108 108          | 403  404
root        closed:a                  | 103       | 103 108 108              | -                    | 403  404
eve[pub]    closed:a                  | 103       | yes 108 108              | -                    | 403  404
eve[all]    closed:a                  | yes       | yes 108 108              | yes 108 108          | 200  404
bob         open:a                    | yes       | yes yes yes              | yes yes yes          | 200  200
anon        open:a                    | 103       | 103 103 103              | -                    | 403  403
nobody      open:a                    | 103       | 103 103 103              | -                    | 401  401
anon        public:a                  | yes       | yes yes yes              | yes yes yes          | 200  200
nobody      public:a                  | yes       | yes yes yes              | yes yes yes          | 401  401
bob         inside:a                  | yes       | 103 103 103              | yes yes yes          | 200  403
anon        inside:a                  | 103       | 103 103 103              | -                    | 403  403
bob         plain                     | 103       | 103 103 103              | -                    | 403  403
eve[all]    plain                     | yes       | yes yes yes              | yes yes yes          | 200  200
bob         nope:a                    | 102       | 102 102 102              | -                    | 404  404
root        nope:a                    | 102       | 102 102 102              | -                    | 404  404
eve[all]    nope:a                    | 102       | 102 102 102              | -                    | 404  404

# Private names and user lists restrict themselves. In the list of a stream a comma separates channels.
bob         $open:a                   | 103       | 103 103 103              | -                    | 403  403
bob         $open:a token             | yes       | 103 103 103              | yes yes yes          | 403  403
anon        $public:a                 | 103       | 103 103 103              | -                    | 403  403
bob         dialog:x#ana,bob          | yes       | 103 108 108              | 103 108 108          | 403  404
bob         dialog:x#bob              | yes       | 103 108 108              | 103 108 108          | 200  404
bob         dialog:x#ana,eve          | 103       | 103 108 108              | -                    | 403  404
bob         dialog:x#ana,eve token    | yes       | 103 108 108              | 103 108 108          | 403  404
";

const JOB: &str = "job:5e0b4a52-7c1c-4a8e-9a35-2f0d1b1f7a11";
const BUILD: &str = "build:0190f1de-7a2b-7c3d-8e4f-5a6b7c8d9e0f";

#[test]
fn every_endpoint_answers_as_the_table_says() {
    on_sqlite(async |home| {
        home.configure(NAMESPACES);
        let gateway = Gateway::start(&home).await;
        let mut rows = 0;
        let mut wrong = Vec::new();
        for row in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let columns: Vec<Vec<&str>> =
                row.split('|').map(|part| part.split_whitespace().collect()).collect();
            let [subject, expected @ ..] = columns.as_slice() else { panic!("a row has columns: {row}") };
            let channel = match subject[1] {
                "JOB" => JOB,
                "BUILD" => BUILD,
                channel => channel,
            };
            let answers = answers(&gateway, subject[0], channel, subject.len() > 2).await;
            if answers != expected {
                wrong.push(format!("{row}\n  answers {answers:?}"));
            }
            rows += 1;
        }
        assert!(wrong.is_empty(), "{} rows differ:\n{}", wrong.len(), wrong.join("\n"));
        assert!(rows >= 50, "the table has {rows} rows");
    });
}

/// The columns of a row, as they are.
async fn answers(gateway: &Gateway, who: &str, channel: &str, admitted: bool) -> Vec<Vec<String>> {
    let claims = claims(who);
    let token = claims.as_ref().map(|claims| token_by(JWT_SECRET, claims));
    let mut client = Client::open(gateway.address).await;
    client.connect(token.as_deref().unwrap_or_default()).await;
    let outside = the_rest(&mut client, channel).await;
    let mut subscribe = json!({ "subscribe": { "channel": channel } });
    if admitted {
        let user = &claims.as_ref().expect("a user")["sub"];
        let grant = token_by(JWT_SECRET, &json!({ "sub": user, "channel": channel }));
        subscribe["subscribe"]["token"] = grant.into();
    }
    let subscribed = verdict(&mut client, subscribe).await;
    let inside = match subscribed.as_str() {
        "yes" => the_rest(&mut client, channel).await,
        _ => vec!["-".to_owned()],
    };
    let escaped = channel.replace('$', "%24").replace('#', "%23").replace(',', "%2C");
    let get = |path: String| {
        let request = Request::get(&path);
        token.iter().fold(request, |request, token| request.bearer(token))
    };
    let stream = Stream::open(gateway.address, &get(format!("/api/events/stream?channels={escaped}"))).await;
    let stream = stream.map_or_else(|refused| refused.status, |_| 200);
    let poll = get(format!("/api/events?channel={escaped}")).send(gateway.address).await.status;
    vec![vec![subscribed], outside, inside, vec![stream.to_string(), poll.to_string()]]
}

/// Publish, history and presence over WebSocket.
async fn the_rest(client: &mut Client, channel: &str) -> Vec<String> {
    let mut verdicts = Vec::new();
    for command in [
        json!({ "publish": { "channel": channel, "data": 1 } }),
        json!({ "history": { "channel": channel, "limit": 1 } }),
        json!({ "presence": { "channel": channel } }),
    ] {
        verdicts.push(verdict(client, command).await);
    }
    verdicts
}

/// `yes`, or the code of the error. Pushes that come before the reply are not looked at.
async fn verdict(client: &mut Client, command: Value) -> String {
    let id = client.command(command).await;
    loop {
        match client.next().await {
            Received::Message(reply) if reply["id"] == id => {
                return reply["error"]["code"]
                    .as_u64()
                    .map_or_else(|| "yes".to_owned(), |code| code.to_string());
            }
            Received::Message(_) | Received::Pong(_) => {}
            said => panic!("{said:?}"),
        }
    }
}
