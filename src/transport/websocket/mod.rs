//! WebSocket connections, which are upgraded out of the HTTP dispatcher. `actor` is the connection
//! actor, `incoming` reads the messages of a client. This file contains the life of a connection: it is
//! served while its session is open, then closed in order.

mod actor;
mod incoming;

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use actix::{Context, StreamHandler as _};
use actix_rt::net::TcpStream;
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::FutureExt as _;

use super::worker::{CLOSE_TIMEOUT, WorkerContext};
use crate::hub::metrics::Transport;
use crate::hub::outbox::{Outbox, UpgradedSocket};
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::form::Form;
use crate::protocol::websocket as wire;
use actor::WebSocketActor;
use incoming::{Credit, Incoming};

type SocketContext = Context<WebSocketActor>;

/// The kind of client on a WebSocket.
#[derive(Debug, Clone)]
pub enum SocketClient {
    /// It sends commands.
    Bidirectional,
    /// It sends only its connect: this one, or else its first message.
    Unidirectional(Option<ByteString>),
}

impl SocketClient {
    fn form(&self) -> Option<Form> {
        matches!(self, Self::Unidirectional(_)).then_some(Form::UniWebsocket)
    }
}

impl WorkerContext {
    /// Serves a connection over `stream` until it ends. `first` is what came with the request; `held`
    /// is dropped when the socket is closed. The state of the future takes memory as long as the
    /// connection lives, so as much as possible is created before.
    pub fn serve(
        self: Rc<Self>,
        stream: TcpStream,
        first: BytesMut,
        client: SocketClient,
        held: impl Sized,
    ) -> impl Future<Output = ()> {
        let form = client.form();
        let transport = Transport(form.map_or("websocket", Form::name));
        let largest = if form.is_some() { self.options.uni_message_size } else { self.options.message_size };
        self.metrics.connections.with(transport).inc();
        let outbox = Rc::new(Outbox::for_socket(UpgradedSocket::Plain(stream), self.outbox.clone()));
        let credit = Credit::new(largest);
        let incoming = Incoming::new(outbox.clone(), first, credit.clone(), largest);
        let mut ctx = SocketContext::new();
        WebSocketActor::add_stream(incoming, &mut ctx);
        let mut actor = ctx.into_future(WebSocketActor::new(self.clone(), outbox.clone(), credit, client));
        async move {
            // By reference: a value that is moved into an awaited future would be stored twice.
            let live = AssertUnwindSafe(&mut actor);
            if live.catch_unwind().await.is_err() {
                outbox.end_with(disconnect_message(form, &DisconnectCode::Internal.into()));
            }
            drop(actor);
            Box::pin(linger(&outbox)).await;
            outbox.abort_unless_closed();
            self.metrics.connections.with(transport).dec();
            drop(held);
        }
    }
}

/// The closing frame; a unidirectional client is sent a disconnect push before it.
fn disconnect_message(form: Option<Form>, disconnect: &Disconnect) -> Bytes {
    form.map_or_else(|| wire::close(disconnect), |form| form.disconnect_message(disconnect))
}

/// Reads what the peer still sends, until it closes: closing a socket that has unread bytes resets
/// the connection, and our last frames would be lost.
async fn linger(outbox: &Outbox) {
    let Some(wire) = outbox.upgraded_socket() else { return };
    let mut rest = [0; 1024];
    let until_end = async {
        while poll_fn(|cx| wire.poll_read_ready(cx)).await.is_ok() {
            match wire.try_read(&mut rest) {
                Ok(0) => return,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                // A peer that keeps sending must not block this thread.
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, until_end).await;
}
