//! Signed `workflow_run` deliveries, as GitHub would send them, of unique runs over a few
//! repositories. What differs between two deliveries stands at the end of the body, so the HMAC
//! over the rest is computed once: signing 4 KB costs a few hundred bytes of hashing.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::{Builder, Uuid, Variant, Version};

use crate::http::{self, Request, RequestBuilder as _};
use crate::target::Target;

/// The owner of every repository here.
pub const OWNER: &str = "acme";

/// A run's id has 16 digits until the year 2286, so every body of a repository is equally long.
const SUFFIX: usize = ",\"id\":,\"run_number\":,\"head_sha\":\"\"}}".len() + 16 + 16 + 40;

/// What was asked for: the name of the delivery and of the run it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// `X-GitHub-Delivery`.
    pub id: Uuid,
    /// `workflow_run.id`.
    pub run_id: u64,
    /// The repository is `acme/r{repo}`.
    pub repo: usize,
}

/// An endless supply of deliveries, shared by all connections.
pub struct Payloads {
    templates: Vec<Template>,
    taken: AtomicU64,
    first_run: u64,
    first_id: u128,
}

/// All that the requests of one repository have in common.
struct Template {
    head: Vec<u8>,
    prefix: Vec<u8>,
    hashed: Hmac<Sha256>,
}

impl Payloads {
    /// Deliveries to `target`, signed with `secret`, with bodies of about `size` bytes.
    pub fn new(target: &Target, secret: &str, repos: usize, size: usize) -> Result<Self> {
        ensure!(repos > 0, "at least one repository");
        let now = SystemTime::now();
        let at = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let micros = now.duration_since(UNIX_EPOCH)?.as_micros();
        Ok(Self {
            templates: (0..repos).map(|repo| Template::new(target, secret, repo, size, &at)).collect(),
            taken: AtomicU64::new(0),
            first_run: u64::try_from(micros)?,
            // The low half counts, so two deliveries of a run never share an id.
            first_id: Uuid::new_v4().as_u128() >> 64 << 64,
        })
    }

    /// The length of every body.
    pub fn body_size(&self) -> usize {
        self.templates[0].prefix.len() + SUFFIX
    }

    /// The run of the first delivery; each one more is a run more.
    pub fn first_run(&self) -> u64 {
        self.first_run
    }

    /// Replaces `request` by the whole request of the next delivery.
    pub fn next(&self, request: &mut Vec<u8>) -> Delivery {
        let delivery = self.take();
        self.templates[delivery.repo].write(delivery, request);
        delivery
    }

    /// The next delivery, as a request.
    pub fn next_request(&self) -> (Delivery, Request) {
        let delivery = self.take();
        let (template, suffix) = (&self.templates[delivery.repo], suffix(delivery));
        let mut mac = template.hashed.clone();
        mac.update(&suffix);
        let body = [&*template.prefix, &suffix].concat();
        (delivery, webhook("workflow_run", delivery.id, mac, body))
    }

    fn take(&self) -> Delivery {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        let repo = usize::try_from(number % self.templates.len() as u64).unwrap_or(0);
        let id = self.first_id + u128::from(number);
        let id = Builder::from_u128(id).with_version(Version::Random).with_variant(Variant::RFC4122);
        Delivery { id: id.into_uuid(), run_id: self.first_run + number, repo }
    }
}

/// A webhook of this kind and body, signed as GitHub would.
pub fn signed(secret: &str, event: &str, id: Uuid, body: impl Into<Bytes>) -> Request {
    let body = body.into();
    let mut mac = keyed(secret);
    mac.update(&body);
    webhook(event, id, mac, body)
}

fn webhook(event: &str, id: Uuid, mac: Hmac<Sha256>, body: impl Into<Bytes>) -> Request {
    http::post("/webhooks/github")
        .header("Content-Type", "application/json")
        .header("X-GitHub-Event", event)
        .header("X-GitHub-Delivery", id.to_string())
        .header("X-Hub-Signature-256", format!("sha256={}", hex::encode(mac.finalize().into_bytes())))
        .with(body)
}

fn keyed(secret: &str) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length")
}

/// The end of a body, in which one delivery differs from the next.
fn suffix(delivery: Delivery) -> [u8; SUFFIX] {
    let (run, mut suffix) = (delivery.run_id, [0; SUFFIX]);
    write!(&mut suffix[..], ",\"id\":{run},\"run_number\":{run},\"head_sha\":\"{run:040x}\"}}}}")
        .expect("the suffix has its length");
    suffix
}

impl Template {
    fn new(target: &Target, secret: &str, repo: usize, size: usize, at: &str) -> Self {
        let mut prefix = prefix(repo, "", at);
        let missing = size.saturating_sub(prefix.len() + SUFFIX);
        if missing > 0 {
            prefix = self::prefix(repo, &padding(missing), at);
        }
        let length = prefix.len() + SUFFIX;
        let head = format!(
            "POST /webhooks/github HTTP/1.1\r\nHost: {}\r\nUser-Agent: GitHub-Hookshot/loadtest\r\n\
             Accept: */*\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             X-GitHub-Event: workflow_run\r\nX-GitHub-Delivery: ",
            target.host
        );
        let mut hashed = keyed(secret);
        hashed.update(prefix.as_bytes());
        Self { head: head.into_bytes(), prefix: prefix.into_bytes(), hashed }
    }

    fn write(&self, delivery: Delivery, request: &mut Vec<u8>) {
        let suffix = suffix(delivery);
        let mut mac = self.hashed.clone();
        mac.update(&suffix);
        let mut signature = [0; 64];
        hex::encode_to_slice(mac.finalize().into_bytes(), &mut signature).expect("32 bytes are 64 digits");

        request.clear();
        request.extend_from_slice(&self.head);
        request
            .extend_from_slice(delivery.id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
        request.extend_from_slice(b"\r\nX-Hub-Signature-256: sha256=");
        request.extend_from_slice(&signature);
        request.extend_from_slice(b"\r\n\r\n");
        request.extend_from_slice(&self.prefix);
        request.extend_from_slice(&suffix);
    }
}

/// The body up to where deliveries differ: both objects are left open.
fn prefix(repo: usize, padding: &str, at: &str) -> String {
    let outer = json!({
        "action": "completed",
        "organization": account(OWNER, 9_000_001, "Organization"),
        "repository": repository(repo),
        "sender": account("ada", 9_000_002, "User"),
        "workflow": {
            "id": 7_700_001, "name": "CI", "path": ".github/workflows/ci.yml", "state": "active",
            "created_at": "2025-01-06T09:00:00Z", "updated_at": "2025-01-06T09:00:00Z",
        },
    });
    let run = json!({
        "name": "CI", "event": "push", "status": "completed", "conclusion": "success",
        "workflow_id": 7_700_001, "check_suite_id": 8_800_001, "run_attempt": 1, "pull_requests": [],
        "head_branch": "main", "path": ".github/workflows/ci.yml", "display_title": "Make the build faster",
        "created_at": at, "run_started_at": at, "updated_at": at,
        "html_url": format!("https://github.com/{OWNER}/r{repo}/actions/runs/7"),
        "actor": account("ada", 9_000_002, "User"),
        "triggering_actor": account("ada", 9_000_002, "User"),
        "repository": repository(repo),
        "head_commit": {
            "id": "0123456789abcdef0123456789abcdef01234567", "timestamp": at, "message": padding,
            "author": { "name": "Ada", "email": "ada@example.com" },
        },
    });
    format!("{},\"workflow_run\":{}", open(&outer), open(&run))
}

fn repository(repo: usize) -> Value {
    json!({
        "id": 5_000_000 + repo, "name": format!("r{repo}"), "full_name": format!("{OWNER}/r{repo}"),
        "private": true, "default_branch": "main", "owner": account(OWNER, 9_000_001, "Organization"),
        "html_url": format!("https://github.com/{OWNER}/r{repo}"), "fork": false,
    })
}

fn account(login: &str, id: u64, kind: &str) -> Value {
    json!({
        "login": login, "id": id, "type": kind, "site_admin": false,
        "html_url": format!("https://github.com/{login}"),
        "avatar_url": format!("https://avatars.githubusercontent.com/u/{id}?v=4"),
    })
}

/// An object without its closing brace.
fn open(object: &Value) -> String {
    let mut text = object.to_string();
    text.pop();
    text
}

/// A commit message of exactly `size` bytes that compresses like prose, not like zeros.
fn padding(size: usize) -> String {
    const WORDS: [&str; 8] = ["the ", "build ", "cache ", "keeps ", "every ", "crate ", "that ", "changed "];
    let mut text = String::with_capacity(size + 10);
    let mut state = 0x9e37_79b9_u32;
    while text.len() < size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(WORDS[state as usize >> 29]);
    }
    text.truncate(size);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const SECRET: &str = "s3cret";

    fn payloads(repos: usize, size: usize) -> Payloads {
        let target = Target::from("127.0.0.1:8080".parse::<std::net::SocketAddr>().unwrap());
        Payloads::new(&target, SECRET, repos, size).unwrap()
    }

    fn header<'a>(head: &'a str, name: &str) -> &'a str {
        let line = head.lines().find(|line| line.starts_with(&format!("{name}: "))).unwrap();
        line.split_once(": ").unwrap().1
    }

    #[test]
    fn a_request_is_signed_and_as_long_as_it_says() {
        let payloads = payloads(2, 4096);
        let mut request = Vec::new();
        for number in 0..4 {
            let delivery = payloads.next(&mut request);
            let text = std::str::from_utf8(&request).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert_eq!(body.len(), 4096);
            assert_eq!(header(head, "Content-Length"), "4096");
            assert_eq!(header(head, "X-GitHub-Delivery"), delivery.id.to_string());
            let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
            mac.update(body.as_bytes());
            let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
            assert_eq!(header(head, "X-Hub-Signature-256"), signature);

            let json: Value = serde_json::from_str(body).unwrap();
            assert_eq!(json["workflow_run"]["id"], delivery.run_id);
            assert_eq!(json["repository"]["full_name"], format!("acme/r{}", number % 2));
            assert_eq!(json["repository"], json["workflow_run"]["repository"]);
        }
    }

    #[test]
    fn nothing_is_sent_twice_under_one_name() {
        let payloads = payloads(3, 0);
        let mut request = Vec::new();
        let all: Vec<Delivery> = (0..1000).map(|_| payloads.next(&mut request)).collect();
        assert_eq!(all.iter().map(|d| d.id).collect::<HashSet<_>>().len(), 1000);
        assert_eq!(all.iter().map(|d| d.run_id).collect::<HashSet<_>>().len(), 1000);
        assert!(all.iter().all(|d| d.id.get_version() == Some(Version::Random)));
    }
}
