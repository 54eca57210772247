//! The access rule as a table: who, with which context, on which channel, may do what. A row is one
//! line of text with a verdict for each of the four actions.

mod agreement;
mod million;

use uuid::uuid;

use super::*;
use crate::domain::pattern::ChannelPattern;
use crate::domain::sorted_set::SortedSet;

const JOB: &str = "job:5e0b4a52-7c1c-4a8e-9a35-2f0d1b1f7a11";
const BUILD: &str = "build:0190f1de-7a2b-7c3d-8e4f-5a6b7c8d9e0f";

/// Verdicts: `yes`, or the error's code on the wire. In the first columns:
///
/// - `ana` has the org acme and the repository other/one, `bob` has nothing, `anon` is anonymous,
///   `root` has the admin scope and nothing else, `42` is one of the users in the names.
/// - `caps(RIGHTS@PATTERN)` is user eve with this capability, `claim(CHANNEL)` user eve with this
///   channel in the claim `channels`.
/// - AccessContext: `token` (a subscription token), `in` (subscribed now), `insecure`, `unknown` (no such
///   resource), `of=OWNER/NAME` (the job's repository), `no-repo`, `by=USER`, `by=USER,ORG` (the build's).
/// - Namespaces: `closed` allows nothing, `open` everything to clients, `public` also to anonymous
///   ones, `inside` everything but subscribing to subscribers, `club` that and anonymous ones,
///   `dialog` as `open` with user lists, `bare` as `open` without history and presence. Names
///   without a namespace are as `closed`, with history and presence on; `nope` is not declared.
const TABLE: &str = "
# who                        context          channel             sub pub hst prs

# Repositories and owners, by claims alone.
ana                          -              repo:acme/api       yes 103 yes 108
ana                          -              repo:acme/unseen    yes 103 yes 108
ana                          -              repo:other/one      yes 103 yes 108
ana                          -              repo:other/two      103 103 103 108
ana                          -              repo:ACME/api       103 103 103 108
ana                          -              repo:other/One      103 103 103 108
ana                          -              repo:acme2/api      103 103 103 108
ana                          -              org:acme            yes 103 yes 108
ana                          -              org:other           103 103 103 108
ana                          -              org:Acme            103 103 103 108
bob                          -              repo:acme/api       103 103 103 108
anon                         -              repo:acme/api       103 103 103 108
anon                         -              org:acme            103 103 103 108
root                         -              repo:acme/api       yes 103 yes 108
root                         -              org:whoever         yes 103 yes 108

# Nothing but a right opens built-in channels.
bob                          insecure       repo:acme/api       103 103 103 108
bob                          insecure       org:acme            103 103 103 108
bob                          insecure       db:orders           103 103 103 108
bob                          insecure+of=acme/api JOB           103 103 103 108
bob                          token          repo:acme/api       yes 103 yes 108
bob                          in             repo:acme/api       103 103 yes 108
claim(repo:acme/api)         -              repo:acme/api       yes 103 yes 108
claim(repo:acme/api)         -              repo:acme/web       103 103 103 108
claim(org:acme)              -              org:acme            yes 103 yes 108
claim(org:acme)              -              repo:acme/api       103 103 103 108

# Jobs: who may see the repository.
ana                          of=acme/api    JOB                 yes 103 yes 108
ana                          of=other/one   JOB                 yes 103 yes 108
ana                          of=other/two   JOB                 103 103 103 108
ana                          unknown        JOB                 103 103 103 108
ana                          -              JOB                 103 103 103 108
ana                          by=ana         JOB                 103 103 103 108
ana                          no-repo        JOB                 103 103 103 108
bob                          of=acme/api    JOB                 103 103 103 108
bob                          of=acme/api+token JOB              yes 103 yes 108
bob                          unknown+token  JOB                 103 103 103 108
root                         of=acme/api    JOB                 yes 103 yes 108
root                         no-repo        JOB                 yes 103 yes 108
root                         unknown        JOB                 103 103 103 108
claim(repo:acme/api)         of=acme/api    JOB                 yes 103 yes 108
caps(sub@repo:acme/*)        of=acme/api    JOB                 yes 103 yes 108
caps(sub@repo:acme/*)        of=other/one   JOB                 103 103 103 108
caps(sub@job:*)              of=acme/api    JOB                 yes 103 yes 108
caps(sub@job:*)              unknown        JOB                 103 103 103 108

# Builds: whose they are.
ana                          by=ana         BUILD               yes 103 yes 108
ana                          by=bob         BUILD               103 103 103 108
ana                          by=bob,acme    BUILD               yes 103 yes 108
ana                          by=bob,other   BUILD               103 103 103 108
bob                          by=bob,acme    BUILD               yes 103 yes 108
ana                          unknown        BUILD               103 103 103 108
ana                          of=acme/api    BUILD               103 103 103 108
anon                         by=            BUILD               103 103 103 108
root                         by=bob         BUILD               yes 103 yes 108
root                         unknown        BUILD               103 103 103 108
claim(BUILD)                 by=bob         BUILD               yes 103 yes 108
claim(BUILD)                 unknown        BUILD               103 103 103 108

# Row changes: only what is given by name.
ana                          -              db:orders           103 103 103 108
bob                          token          db:orders           yes 103 yes 108
root                         -              db:orders           yes 103 yes 108
claim(db:orders)             -              db:orders           yes 103 yes 108
caps(sub@db:ord*)            -              db:orders           yes 103 yes 108
caps(sub@db:ord*)            -              db:users            103 103 103 108

# Capabilities: several rights at once, never to publish what is ours.
caps(sub,pub,hst,prs@*)      -              repo:acme/api       yes 103 yes 108
caps(pub@repo:*)             -              repo:acme/api       103 103 103 108
caps(hst@repo:acme/*)        -              repo:acme/api       103 103 yes 108
caps(sub@repo:acme/*)        -              repo:acme2/api      103 103 103 108
caps(sub@repo:*/api)         -              repo:acme/api       yes 103 yes 108
caps(sub@repo:*/api)         -              repo:acme/api2      103 103 103 108
caps(sub@closed:*)           -              closed:a            yes 103 108 108
caps(pub@closed:*)           -              closed:a            103 yes 108 108
caps(sub@plain)              -              plain               yes 103 103 103
caps(hst,prs@plain)          -              plain               103 103 yes yes
caps(sub@$plain)             -              $plain              yes 103 103 103
caps(sub,pub,hst,prs@*)      -              nope:a              102 102 102 102
caps(sub,pub,hst,prs@*)      -              bare:a              yes yes 108 108
caps(SUB,subscribe,*@plain)  -              plain               103 103 103 103

# Personal channels: that user alone.
42                           -              #42                 yes 103 yes yes
42                           -              open:#42            yes yes yes yes
42                           -              closed:#42          yes 103 108 108
42                           in             inside:#42          yes yes yes yes
42                           insecure       #42                 yes yes yes yes
42                           -              #43                 103 103 103 103
42                           -              #4                  103 103 103 103
42                           -              nope:#42            102 102 102 102
42                           -              open:#43            103 103 103 103
anon                         -              #42                 103 103 103 103
anon                         insecure       #42                 103 103 103 103
bob                          insecure+token+in open:#42         103 103 103 103
root                         -              #42                 103 103 103 103
claim(#42)                   -              #42                 103 103 103 103
caps(sub,pub,hst,prs@*)      token          #42                 103 103 103 103
caps(pub@#*)                 -              #eve                yes yes yes yes

# Configured namespaces: what the operator opened.
bob                          -              closed:a            103 103 108 108
bob                          token          closed:a            yes 103 108 108
bob                          insecure       closed:a            yes yes 108 108
root                         -              closed:a            103 103 108 108
claim(closed:a)              -              closed:a            yes 103 108 108
claim(closed:a)              -              closed:b            103 103 108 108
bob                          -              open:a              yes yes yes yes
anon                         -              open:a              103 103 103 103
anon                         token          open:a              yes 103 103 103
anon                         insecure       open:a              yes yes yes yes
anon                         -              public:a            yes yes yes yes
bob                          -              inside:a            103 103 103 103
bob                          in             inside:a            103 yes yes yes
anon                         in             inside:a            103 103 103 103
anon                         in             club:a              103 yes yes yes
bob                          -              bare:a              yes yes 108 108
bob                          insecure       bare:a              yes yes 108 108
bob                          -              plain               103 103 103 103
bob                          in             plain               103 103 103 103
bob                          insecure       plain               yes yes yes yes
bob                          -              nope:a              102 102 102 102
bob                          insecure+token+in nope:a           102 102 102 102
root                         -              nope:a              102 102 102 102

# Private names: a token first, whatever the namespace opens.
bob                          -              $open:a             103 103 103 103
bob                          token          $open:a             yes yes yes yes
bob                          in             $open:a             103 yes yes yes
claim($open:a)               -              $open:a             yes yes yes yes
bob                          insecure       $open:a             103 103 103 103
bob                          insecure+token $plain              yes yes yes yes
anon                         -              $public:a           103 103 103 103
bob                          -              $bare:a             103 103 108 108
bob                          -              $nope:a             102 102 102 102

# User lists, where the namespace allows them.
42                           -              dialog:x#42,43      yes yes yes yes
42                           -              dialog:x#43,42      yes yes yes yes
42                           -              dialog:x#43,44      103 103 103 103
42                           -              dialog:x#421        103 103 103 103
42                           insecure       dialog:x#43,44      103 103 103 103
42                           -              dialog:x#42#43      103 103 103 103
42                           token          dialog:x#43,44      yes yes yes yes
42                           in             dialog:x#43,44      103 yes yes yes
42                           -              $dialog:x#42,43     103 103 103 103
anon                         -              dialog:x#           103 103 103 103
anon                         -              dialog:x#,42        103 103 103 103
42                           -              dialog:x            yes yes yes yes
42                           -              open:x#43           yes yes yes yes
bob                          -              closed:x#bob        103 103 108 108
";

#[test]
fn the_table_holds() {
    let mut rows = 0;
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        let [who, context, channel, verdicts @ ..] = &line.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("a row has columns: {line}");
        };
        let actions = [Action::Subscribe, Action::Publish, Action::History, Action::Presence];
        assert_eq!(verdicts.len(), actions.len(), "{line}");
        let channel = ChannelName::parse(&expand(channel)).expect(line);
        let options = options_of(&channel);
        let context = facts_of(context, options.as_ref());
        for (action, verdict) in actions.into_iter().zip(verdicts) {
            let got = match may(&who_is(who), action, &channel, &context) {
                Ok(()) => "yes",
                Err(Denied::UnknownChannel) => "102",
                Err(Denied::Forbidden) => "103",
                Err(Denied::NotAvailable) => "108",
                Err(Denied::BadName) => "107",
            };
            assert_eq!(got, *verdict, "{action:?} in the row: {line}");
        }
        rows += 1;
    }
    assert!(rows >= 120, "the table has {rows} rows");
}

fn expand(text: &str) -> String {
    text.replace("JOB", JOB).replace("BUILD", BUILD)
}

fn names(names: &[&str]) -> SortedSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn who_is(text: &str) -> Principal {
    let mut who = Principal { user: text.to_owned(), ..Principal::default() };
    if let Some(inner) = text.strip_suffix(')') {
        "eve".clone_into(&mut who.user);
        let (kind, inner) = inner.split_once('(').expect(text);
        match kind {
            "claim" => {
                who.channels = [ChannelName::parse(&expand(inner)).expect(text)].into_iter().collect();
            }
            _ => {
                let (rights, pattern) = inner.split_once('@').expect(text);
                let channels = vec![ChannelPattern::new("unrelated"), ChannelPattern::new(pattern)];
                who.caps = [Capability { channels, allow: rights.split(',').collect() }].into();
            }
        }
    }
    match text {
        "anon" => who.user.clear(),
        "root" => who.scopes.admin = true,
        "ana" => {
            who.orgs = names(&["acme"]);
            who.repos = names(&["other/one"]);
        }
        _ => {}
    }
    who
}

fn facts_of<'a>(text: &'a str, options: Option<&'a ChannelOptions>) -> AccessContext<'a> {
    let mut context = AccessContext { options, ..AccessContext::default() };
    for word in text.split('+') {
        match word.split_once('=').unwrap_or((word, "")) {
            ("-", _) => {}
            ("token", _) => context.admitted_by_token = true,
            ("in", _) => context.subscribed = true,
            ("insecure", _) => context.insecure = true,
            ("unknown", _) => context.resource = Resource::Unknown,
            ("no-repo", _) => context.resource = Resource::Job { repo: None },
            ("of", repo) => context.resource = Resource::Job { repo: repo.split_once('/') },
            ("by", whose) => {
                let (user, org) =
                    whose.split_once(',').map_or((whose, None), |(user, org)| (user, Some(org)));
                context.resource = Resource::Build { user, org };
            }
            _ => panic!("no such fact: {word}"),
        }
    }
    context
}

fn options_of(channel: &ChannelName) -> Option<ChannelOptions> {
    let kept = || ChannelOptions {
        history_size: 10,
        history_ttl: crate::domain::units::Span::secs(60),
        presence: true,
        ..ChannelOptions::default()
    };
    let inside = ChannelOptions {
        allow_publish_for_subscriber: true,
        allow_history_for_subscriber: true,
        allow_presence_for_subscriber: true,
        ..kept()
    };
    let open = ChannelOptions {
        allow_subscribe_for_client: true,
        allow_publish_for_client: true,
        allow_history_for_client: true,
        allow_presence_for_client: true,
        ..kept()
    };
    let with_anonymous = |options: ChannelOptions| ChannelOptions {
        allow_subscribe_for_anonymous: true,
        allow_publish_for_anonymous: true,
        allow_history_for_anonymous: true,
        allow_presence_for_anonymous: true,
        ..options
    };
    Some(match channel.namespace() {
        None => kept(),
        Some("closed") => ChannelOptions::default(),
        Some("open") => open,
        Some("public") => with_anonymous(open),
        Some("inside") => inside,
        Some("club") => with_anonymous(inside),
        Some("dialog") => ChannelOptions { allow_user_limited_channels: true, ..open },
        Some("bare") => ChannelOptions { history_size: 0, presence: false, ..open },
        _ => return None,
    })
}

#[test]
fn the_least_that_can_be_known_admits_to_nothing() {
    let nobody = Principal::default();
    for text in ["repo:a/b", "org:a", JOB, BUILD, "db:t", "#42", "x", "ns:x", "$x"] {
        let channel = ChannelName::parse(text).expect(text);
        for action in [Action::Subscribe, Action::Publish, Action::History, Action::Presence] {
            assert!(may(&nobody, action, &channel, &AccessContext::default()).is_err(), "{text}");
        }
    }
    let job = ChannelName::parse(JOB).expect(JOB);
    assert_eq!(job.kind(), ChannelKind::Job(uuid!("5e0b4a52-7c1c-4a8e-9a35-2f0d1b1f7a11")));
}

#[test]
fn the_default_channels_are_those_named_without_events_twice() {
    let channels = ["repo:named/x", "#ana", "open:a", JOB].map(|c| ChannelName::parse(c).expect(c));
    let subscribes = Capability {
        channels: ["org:capped", "repo:capped/x", "org:*", "plain"].map(ChannelPattern::new).to_vec(),
        allow: ["sub"].into_iter().collect(),
    };
    let publishes = Capability {
        channels: vec![ChannelPattern::new("org:published")],
        allow: ["pub", "hst"].into_iter().collect(),
    };
    let who = Principal {
        user: "ana".to_owned(),
        orgs: names(&["acme", "not an owner"]),
        repos: names(&["other/one", "acme/api", "no slash", "bad name/x", "zeta/z"]),
        channels: channels.into_iter().collect(),
        caps: [subscribes, publishes].into(),
        ..Principal::default()
    };
    let names: Vec<String> = default_channels(&who).iter().map(ToString::to_string).collect();
    assert_eq!(names, ["org:acme", "org:capped", "repo:named/x", "repo:other/one", "repo:zeta/z"]);
    assert!(default_channels(&who_is("root")).is_empty());
}

#[test]
fn a_personal_channel_is_only_made_from_an_id_that_fits() {
    let channel = |user: &str, namespace| {
        let who = Principal { user: user.to_owned(), ..Principal::default() };
        who.personal_channel(namespace).map(|channel| channel.to_string())
    };
    assert_eq!(channel("42", None).as_deref(), Some("#42"));
    assert_eq!(channel("42", Some("user")).as_deref(), Some("user:#42"));
    assert_eq!(channel("github:42", None).as_deref(), Some("#github:42"));
    assert_eq!(channel("", None), None);
    assert_eq!(channel("42,43", None), None);
    assert_eq!(channel("zoë", None), None);
    assert_eq!(channel("42", Some("repo")), None);
    assert_eq!(channel(&"4".repeat(300), None), None);
}

#[test]
fn admin_includes_the_other_scopes_and_unknown_words_nothing() {
    let scopes = |text: &str| text.split(' ').collect::<Scopes>();
    assert!(scopes("admin").may_scan() && scopes("admin").may_publish());
    assert!(scopes("read scan").may_scan() && !scopes("read scan").may_publish());
    assert_eq!(scopes("read Admin root publish:all"), Scopes::default());
}

#[test]
fn only_its_owner_and_admins_tell_of_a_build() {
    let tells = |who: &Principal| may_append_to_build(who, "ana");
    let named = |user: &str| Principal { user: user.to_owned(), ..Principal::default() };
    let member = Principal { orgs: names(&["acme"]), ..named("ben") };
    let mut admin = named("root");
    admin.scopes.admin = true;
    assert!(tells(&named("ana")) && tells(&admin));
    assert!(!tells(&member) && !tells(&named("Ana")) && !tells(&named("")));
    assert!(!may_append_to_build(&Principal::default(), ""), "nobody owns nothing");
}
