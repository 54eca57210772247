//! Interpreting never panics, and every event that comes out can be put on its channels.
//! The first byte chooses the kind of event, the rest is the body.
#![no_main]

use campanile::domain::channel::ChannelName;
use campanile::sources::github::{RepoMap, body_text, interpret};
use libfuzzer_sys::fuzz_target;

const KINDS: [&str; 10] = [
    "workflow_run",
    "workflow_job",
    "repository",
    "installation",
    "installation_repositories",
    "ping",
    "push",
    "pull_request",
    "check_run",
    "star",
];

fuzz_target!(|data: &[u8]| {
    let Some((kind, body)) = data.split_first() else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let _ = body_text(Some("application/x-www-form-urlencoded"), body);
    let Ok(text) = body_text(None, body) else { return };
    let Ok(meaning) = interpret(kind, text.as_bytes(), &RepoMap::default()) else { return };
    for event in meaning.events {
        assert!(ChannelName::org(&event.owner).is_ok());
        assert!(event.repo.is_none_or(|repo| ChannelName::repo(&event.owner, &repo).is_ok()));
        assert!(!event.data.get().contains(char::is_control));
    }
});
