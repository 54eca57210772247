//! Requests to other nodes, and their responses. A response is awaited as long as its node counts as
//! alive, and not longer than [`DEADLINE`].

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::message::Message;
use super::metrics::RequestOutcome;
use super::requests::Request;
use super::{Cluster, Peers};

/// How long a response may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// So many live nodes have not responded: the request may not have been carried out there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} nodes have not responded")]
pub struct Incomplete(pub usize);

/// A response with the node that sent it.
type NodeResponse = (Uuid, Box<RawValue>);

#[derive(Default)]
pub(super) struct PendingRequests {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::Sender<NodeResponse>>>,
}

impl PendingRequests {
    pub(super) fn resolve(&self, id: u64, from: Uuid, response: Box<RawValue>) {
        let waiting = self.waiting.lock().expect("no thread panics while holding this lock");
        if let Some(sender) = waiting.get(&id) {
            // The channel has room for one response of each node.
            let _ = sender.try_send((from, response));
        }
    }

    fn register(&self, nodes: usize) -> (u64, mpsc::Receiver<(Uuid, Box<RawValue>)>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, responses) = mpsc::channel(nodes.max(1));
        self.waiting.lock().expect("no thread panics while holding this lock").insert(id, sender);
        (id, responses)
    }
}

/// Removes a pending request when dropped.
struct PendingGuard<'a>(&'a PendingRequests, u64);

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().expect("no thread panics while holding this lock").remove(&self.1);
    }
}

/// The responses of all nodes.
pub(super) struct Responses<T> {
    pub(super) responses: Vec<T>,
    missing: usize,
}

impl<T> Responses<T> {
    /// All responses, or how many are missing.
    pub(super) fn complete(self) -> Result<Vec<T>, Incomplete> {
        if self.missing > 0 { Err(Incomplete(self.missing)) } else { Ok(self.responses) }
    }
}

impl Cluster {
    /// Sends a request to all nodes, this one included.
    pub(super) async fn request_all<R: Request>(&self, request: R) -> Responses<R::Response> {
        let peers = &self.0.peers;
        let nodes = peers.others().borrow().clone();
        if nodes.is_empty() {
            return Responses { responses: vec![request.handle(self).await], missing: 0 };
        }
        let (own, (others, missing)) =
            tokio::join!(request.clone().handle(self), peers.request(nodes, request));
        Responses {
            responses: others.into_iter().map(|(_, response)| response).chain([own]).collect(),
            missing,
        }
    }
}

impl Peers {
    /// Sends a request to `nodes`; returns the responses, and how many live nodes have not responded as
    /// they should. A node that dies meanwhile is not waited for.
    pub(super) async fn request<R: Request>(
        &self,
        nodes: Vec<Uuid>,
        request: R,
    ) -> (Vec<(Uuid, R::Response)>, usize) {
        let (id, mut incoming) = self.0.pending.register(nodes.len());
        let _guard = PendingGuard(&self.0.pending, id);
        let to = if let [node] = nodes[..] { Some(node) } else { None };
        self.send(to, &Message::Request { id, request: request.into() });
        let (mut waiting, mut responses, mut missing) = (nodes, Vec::new(), 0);
        let (mut alive, deadline) = (self.others(), Instant::now() + DEADLINE);
        while !waiting.is_empty() {
            tokio::select! {
                Some((from, response)) = incoming.recv() => {
                    let Some(index) = waiting.iter().position(|node| *node == from) else { continue };
                    waiting.swap_remove(index);
                    match serde_json::from_str(response.get()) {
                        Ok(response) => responses.push((from, response)),
                        Err(error) => {
                            tracing::error!(node = %from, %error, "a response of another node cannot be parsed");
                            missing += 1;
                        }
                    }
                }
                Ok(()) = alive.changed() => {
                    let alive = alive.borrow_and_update();
                    waiting.retain(|node| alive.contains(node));
                }
                () = tokio::time::sleep_until(deadline) => {
                    tracing::warn!(missing = waiting.len(), "nodes have not responded in time");
                    missing += waiting.len();
                    break;
                }
            }
        }
        let outcome = if missing > 0 { RequestOutcome::Incomplete } else { RequestOutcome::Answered };
        self.0.metrics.requests.inc(outcome);
        (responses, missing)
    }
}
