//! New tokens for old, of connections and of subscriptions.

use serde_json::{Value, json};

use super::support::*;

fn refresh(client: &mut Client, claims: Value) -> Value {
    client.ask("refresh", json!({"token": token(claims)}))
}

#[test]
fn a_refresh_prolongs_a_connection() {
    let mut client = Client::connected(json!({"sub": "42", "exp": NOW + 10}));
    client.wait(10.0);
    let reply = refresh(&mut client, json!({"sub": "42", "exp": NOW + 40}));
    let expected =
        json!({"client": CLIENT, "version": env!("CARGO_PKG_VERSION"), "expires": true, "ttl": 30});
    assert_eq!(reply["refresh"], expected);
    client.wait(15.0).frame("{}").take();
    client.wait(25.0).frame("{}").take();
    assert_eq!(client.wait(15.0).closed(), 3005);
}

#[test]
fn a_token_without_an_end_makes_a_connection_endless() {
    let mut client = Client::connected(json!({"sub": "42", "exp": NOW + 10}));
    let reply = refresh(&mut client, json!({"sub": "42"}));
    assert_eq!(reply["refresh"], json!({"client": CLIENT, "version": env!("CARGO_PKG_VERSION")}));
    client.wait(25.0).frame("{}").take();
    assert_eq!(client.wait(20.0).take(), []);
}

#[test]
fn a_bad_refresh_ends_the_connection() {
    let good = json!({"sub": "42", "exp": NOW + 99});
    let lasting = json!({"sub": "42", "exp": NOW + 10});
    for (first, given, code) in [
        (json!({"sub": "42"}), token(good), 3501),
        (json!({"sub": "42"}), String::new(), 3501),
        (lasting.clone(), String::new(), 3501),
        (lasting.clone(), forged(), 3500),
        (lasting.clone(), token(json!({"sub": "43", "exp": NOW + 99})), 3500),
        (lasting.clone(), token(json!({"exp": NOW + 99})), 3500),
        (lasting.clone(), token(json!({"sub": "42", "exp": NOW})), 3005),
        (lasting.clone(), token(json!({"sub": "42", "nbf": NOW + 1})), 3005),
        (lasting, token(json!({"sub": "42", "exp": NOW + 99, "channels": ["chat:a"]})), 3010),
    ] {
        let mut client = Client::connected(first.clone());
        assert_eq!(client.ask_closing("refresh", json!({"token": given})), code, "{first} {given}");
    }
}

#[test]
fn a_refresh_takes_subscriptions_away_that_the_new_token_does_not_admit_to() {
    let claims =
        |orgs: &[&str]| json!({"sub": "42", "exp": NOW + 10, "orgs": orgs, "channels": ["repo:other/x"]});
    let mut client = Client::new();
    client.send("connect", json!({"token": token(claims(&["acme"]))}));
    client.joined("repo:other/x", fresh()).take();
    for name in ["chat:a", "org:acme", "repo:acme/api"] {
        client.subscribe(name);
    }
    let own = token(json!({"sub": "42", "channel": "repo:acme/own"}));
    client.subscribe_with("repo:acme/own", json!({"token": own}), fresh());

    client.send("refresh", json!({"token": token(claims(&[]))}));
    let story = client.story();
    let push = |name| {
        format!(
            r#"{{"push":{{"channel":"{name}","unsubscribe":{{"code":2000,"reason":"server unsubscribe"}}}}}}"#
        )
    };
    assert!(story[0].contains("refresh"), "{story:?}");
    assert_eq!(
        story[1..],
        [
            "leave org:acme".to_owned(),
            push("org:acme"),
            "leave repo:acme/api".to_owned(),
            push("repo:acme/api"),
            "handled".to_owned(),
        ]
    );
    for name in ["chat:a", "repo:acme/own", "repo:other/x"] {
        client.unsubscribe(name);
    }
}

fn with_subscription(claims: Value) -> Client {
    let mut all = json!({"sub": "42", "channel": "shut:a"});
    for (name, value) in claims.as_object().expect("claims") {
        all[name] = value.clone();
    }
    let mut client = Client::ana();
    client.subscribe_with("shut:a", json!({"token": token(all)}), unkept());
    client
}

#[test]
fn a_sub_refresh_prolongs_a_subscription() {
    let mut client = with_subscription(json!({"exp": NOW + 10}));
    let longer = token(json!({"sub": "42", "channel": "shut:a", "exp": NOW + 20}));
    let reply = client.ask("sub_refresh", json!({"channel": "shut:a", "token": longer}));
    assert_eq!(reply, json!({"sub_refresh": {"expires": true, "ttl": 20}}));
    client.wait(25.0).frame("{}").take();
    assert!(client.wait(19.0).take().is_empty());
    assert_eq!(client.wait(1.0).story()[0], "leave shut:a");

    let mut client = with_subscription(json!({"exp": NOW + 10}));
    let endless = token(json!({"sub": "42", "channel": "shut:a"}));
    let reply = client.ask("sub_refresh", json!({"channel": "shut:a", "token": endless}));
    assert_eq!(reply, json!({"sub_refresh": {}}));
    assert_eq!(client.due_in(), Some(25.0));
}

#[test]
fn a_bad_sub_refresh_says_why() {
    let lasting = json!({"exp": NOW + 10});
    let fields = |name: &str, claims: Value| json!({"channel": name, "token": token(claims)});
    let good = json!({"sub": "42", "channel": "shut:a", "exp": NOW + 20});
    for (first, given, code) in [
        (lasting.clone(), fields("shut:b", good.clone()), 103),
        (lasting.clone(), json!({"channel": "shut:ä", "token": "x"}), 107),
        (lasting.clone(), json!({"channel": "shut:a", "token": ""}), 107),
        (json!({}), json!({"channel": "shut:a"}), 107),
        (json!({}), fields("shut:a", good), 3501),
        (lasting.clone(), json!({"channel": "shut:a", "token": "nonsense"}), 3500),
        (lasting.clone(), json!({"channel": "shut:a", "token": forged()}), 3500),
        (lasting.clone(), fields("shut:a", json!({"sub": "42", "channel": "shut:b"})), 3500),
        (lasting.clone(), fields("shut:a", json!({"sub": "43", "channel": "shut:a"})), 3500),
        (lasting.clone(), fields("shut:a", json!({"sub": "42", "channel": "shut:a", "client": "x"})), 3500),
        (lasting.clone(), fields("shut:a", json!({"sub": "42", "channel": "shut:a", "exp": NOW})), 110),
        (lasting, fields("shut:a", json!({"sub": "42", "channel": "shut:a", "nbf": NOW + 1})), 110),
    ] {
        let mut client = with_subscription(first.clone());
        let found = if code > 3000 {
            client.ask_closing("sub_refresh", given.clone()).into()
        } else {
            error(&client.ask("sub_refresh", given.clone()))
        };
        assert_eq!(found, code, "{first} {given}");
    }
}

#[test]
fn a_subscription_that_the_server_made_is_not_judged_by_the_token() {
    let mut client = Client::connected(json!({"sub": "42", "exp": NOW + 10, "orgs": ["acme"]}));
    client.subscribe("org:acme");
    client.connection.subscriptions.get_mut("org:acme").expect("subscribed").server_side = true;
    refresh(&mut client, json!({"sub": "42", "exp": NOW + 20}));
}

#[test]
fn a_sub_refresh_may_change_what_others_see() {
    let mut client = with_subscription(json!({"exp": NOW + 10, "info": 1}));
    let other = token(json!({"sub": "42", "channel": "shut:a", "exp": NOW + 20, "info": 2}));
    client.ask("sub_refresh", json!({"channel": "shut:a", "token": other}));
    let subscription = client.connection.subscriptions.get("shut:a");
    assert_eq!(subscription.and_then(|sub| sub.chan_info.as_deref()), Some("2"));
}
