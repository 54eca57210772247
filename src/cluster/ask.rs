//! Questions to other nodes, and the answers. An answer is waited for as long as its node counts as
//! alive, and not longer than [`DEADLINE`].

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::Cluster;
use super::message::{Answer, Message, Question};
use crate::telemetry::count;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// Nodes that are alive have not answered: what was asked may not have been done there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} nodes have not answered")]
pub struct Unanswered(pub usize);

/// Who waits for answers.
#[derive(Default)]
pub(super) struct Asked {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::Sender<(Uuid, Answer)>>>,
}

impl Asked {
    pub(super) fn answered(&self, id: u64, from: Uuid, answer: Answer) {
        let waiting = self.waiting.lock().expect("nobody panics with the questions in hand");
        if let Some(waits) = waiting.get(&id) {
            // It has room for each node that was asked.
            let _ = waits.try_send((from, answer));
        }
    }

    fn ask(&self, nodes: usize) -> (u64, mpsc::Receiver<(Uuid, Answer)>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answers) = mpsc::channel(nodes.max(1));
        self.waiting.lock().expect("nobody panics with the questions in hand").insert(id, sender);
        (id, answers)
    }
}

/// A question that is open as long as this is.
struct Open<'a>(&'a Asked, u64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().expect("nobody panics with the questions in hand").remove(&self.1);
    }
}

/// What all nodes have answered.
pub(super) struct Answers {
    pub(super) answers: Vec<Answer>,
    missing: usize,
}

impl Answers {
    /// All of them, or how many are missing.
    pub(super) fn whole(self) -> Result<Vec<Answer>, Unanswered> {
        if self.missing > 0 { Err(Unanswered(self.missing)) } else { Ok(self.answers) }
    }
}

impl Cluster {
    /// Asks this node and all others.
    pub(super) async fn ask_all(&self, question: Question) -> Answers {
        let nodes = self.others().borrow().clone();
        if nodes.is_empty() {
            return Answers { answers: vec![self.answer(question).await], missing: 0 };
        }
        let (own, (others, missing)) = tokio::join!(self.answer(question.clone()), self.ask(nodes, question));
        Answers { answers: others.into_iter().map(|(_, answer)| answer).chain([own]).collect(), missing }
    }

    /// Asks `nodes`, and says how many of those that are alive have not answered. Who dies meanwhile
    /// has nothing to say.
    pub(super) async fn ask(&self, nodes: Vec<Uuid>, question: Question) -> (Vec<(Uuid, Answer)>, usize) {
        let (id, mut incoming) = self.0.asked.ask(nodes.len());
        let _open = Open(&self.0.asked, id);
        let to = if let [node] = nodes[..] { Some(node) } else { None };
        self.send(to, &Message::Ask { id, question });
        let (mut waiting, mut answers) = (nodes, Vec::new());
        let (mut alive, deadline) = (self.others(), Instant::now() + DEADLINE);
        while !waiting.is_empty() {
            tokio::select! {
                Some((from, answer)) = incoming.recv() => {
                    if let Some(index) = waiting.iter().position(|node| *node == from) {
                        waiting.swap_remove(index);
                        answers.push((from, answer));
                    }
                }
                Ok(()) = alive.changed() => {
                    let alive = alive.borrow_and_update();
                    waiting.retain(|node| alive.contains(node));
                }
                () = tokio::time::sleep_until(deadline) => {
                    tracing::warn!(missing = waiting.len(), "nodes have not answered in time");
                    count(&self.0.metrics.questions, "incomplete");
                    return (answers, waiting.len());
                }
            }
        }
        count(&self.0.metrics.questions, "answered");
        (answers, 0)
    }
}
