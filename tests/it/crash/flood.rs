//! Webhooks without end, and a book of what became of each: posted how often, answered or not.
//! Sixteen connections post `workflow_run` deliveries of unique runs over five repositories; a
//! delivery whose fate is unknown is posted again under its own id before a new one is made.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testkit::http::{self, Client};
use testkit::payload;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::process::WEBHOOK_SECRET;

const CONCURRENCY: usize = 16;
const REPOS: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// One delivery; its run id is its number.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    pub posts: u32,
    /// Whether an answer of 2xx came.
    pub answered: bool,
}

/// All deliveries by number, from 1.
#[derive(Default)]
pub struct Book {
    pub sent: Mutex<BTreeMap<u64, Sent>>,
    unanswered: Mutex<Vec<u64>>,
    refusals: Mutex<Vec<String>>,
}

pub struct Flood {
    workers: JoinSet<()>,
    /// Grows by one with each answer of 2xx.
    answers: Arc<Semaphore>,
}

enum Posted {
    Answered,
    /// Answered, and the server wants to be asked on another connection.
    AnsweredLast,
    /// No answer: its fate is unknown.
    Lost,
    /// An answer that does not take it.
    Refused,
}

impl Flood {
    /// Lets [`CONCURRENCY`] connections post until the server is gone.
    pub fn start(book: &Arc<Book>, address: SocketAddr) -> Self {
        let answers = Arc::new(Semaphore::new(0));
        let mut workers = JoinSet::new();
        for _ in 0..CONCURRENCY {
            workers.spawn(book.clone().flood(address, answers.clone()));
        }
        Self { workers, answers }
    }

    /// Waits for so many more answers.
    pub async fn answered(&self, count: u32) {
        let enough = timeout(PATIENCE, self.answers.acquire_many(count)).await;
        enough.expect("the deliveries are taken in time").expect("the semaphore is never closed").forget();
    }

    /// Waits until every connection is broken and cannot be made again.
    pub async fn over(mut self) {
        while let Some(done) = timeout(PATIENCE, self.workers.join_next()).await.expect("the flood ends") {
            done.expect("no worker panics");
        }
    }
}

impl Book {
    async fn flood(self: Arc<Self>, address: SocketAddr, answers: Arc<Semaphore>) {
        while let Ok(mut client) = Client::connect(address).await {
            loop {
                let number = self.next();
                let posted = self.post(&mut client, number).await;
                match posted {
                    Posted::Answered | Posted::AnsweredLast => answers.add_permits(1),
                    Posted::Lost | Posted::Refused => {
                        self.unanswered.lock().expect("the book").push(number);
                    }
                }
                match posted {
                    Posted::Answered => {}
                    Posted::AnsweredLast | Posted::Lost => break,
                    Posted::Refused => return,
                }
            }
        }
    }

    /// An unanswered delivery, or else a new one.
    fn next(&self) -> u64 {
        let again = self.unanswered.lock().expect("the book").pop();
        again.unwrap_or_else(|| {
            let mut sent = self.sent.lock().expect("the book");
            let number = sent.len() as u64 + 1;
            sent.insert(number, Sent::default());
            number
        })
    }

    async fn post(&self, client: &mut Client, number: u64) -> Posted {
        let first = {
            let mut sent = self.sent.lock().expect("the book");
            let sent = sent.entry(number).or_default();
            sent.posts += 1;
            sent.posts == 1
        };
        let Ok(answer) = client.send(request(number)).await else { return Posted::Lost };
        let body = answer.excerpt();
        let duplicate = body.contains("\"duplicate\":true");
        let right = match answer.status {
            202 => !duplicate,
            200 => duplicate && !first,
            _ => false,
        };
        if !right {
            let told = format!("{} to delivery {number} (first: {first}): {body}", answer.status);
            self.refusals.lock().expect("the book").push(told);
            return Posted::Refused;
        }
        self.sent.lock().expect("the book").entry(number).or_default().answered = true;
        if answer.header("connection") == Some("close") { Posted::AnsweredLast } else { Posted::Answered }
    }

    /// Posts new deliveries one after the other; each must be taken.
    pub async fn post_new(&self, address: SocketAddr, count: u64) {
        let mut client = Client::connect(address).await.expect("the gateway accepts");
        for _ in 0..count {
            let number = self.next();
            assert!(matches!(self.post(&mut client, number).await, Posted::Answered), "{number} is taken");
        }
    }

    /// Posts every unanswered delivery again; each must be taken now.
    pub async fn post_unanswered(&self, address: SocketAddr) {
        let mut client = Client::connect(address).await.expect("the gateway accepts");
        let unanswered = std::mem::take(&mut *self.unanswered.lock().expect("the book"));
        for number in unanswered {
            let posted = self.post(&mut client, number).await;
            assert!(matches!(posted, Posted::Answered), "{number} is taken: {:?}", self.take_refusals());
        }
    }

    pub fn count_answered(&self) -> usize {
        self.sent.lock().expect("the book").values().filter(|sent| sent.answered).count()
    }

    /// Answers that did not take a delivery, or took it in a wrong way, since the last look.
    pub fn take_refusals(&self) -> Vec<String> {
        std::mem::take(&mut self.refusals.lock().expect("the book"))
    }
}

/// GitHub's id of delivery `number`.
pub fn id(number: u64) -> Uuid {
    Uuid::from_u128(0x4000_8000 << 48 | u128::from(number))
}

pub fn repo(number: u64) -> String {
    format!("acme/r{}", number % REPOS)
}

fn request(number: u64) -> http::Request {
    payload::signed(WEBHOOK_SECRET, "workflow_run", id(number), body(number))
}

pub fn body(number: u64) -> String {
    let repo = number % REPOS;
    format!(
        r#"{{"action":"completed","repository":{{"id":{},"name":"r{repo}","full_name":"acme/r{repo}",
        "private":true,"default_branch":"main","owner":{{"login":"acme","id":9}}}},"workflow_run":{{
        "id":{number},"name":"CI","event":"push","status":"completed","conclusion":"success",
        "workflow_id":7,"run_number":{number},"run_attempt":1,"head_branch":"main",
        "head_sha":"{number:040x}","html_url":"https://github.com/acme/r{repo}/actions/runs/{number}",
        "created_at":"2026-11-21T07:58:33Z","updated_at":"2026-11-21T08:03:12Z"}}}}"#,
        5000 + repo
    )
}
