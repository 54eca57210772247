//! A subscriber on an answer that does not end: lines of `http_stream` or events of `sse`, in both
//! manners. One that speaks says part of it with the request and the rest by posts, to any node.

use anyhow::{Result, bail};
use serde_json::json;
use tokio::time::timeout;

use super::super::history::Transport;
use super::talk::Talk;
use super::{Around, Ended, Follow, LEAVING, Subscriber, encoded};
use crate::http::{Connection, Stream};
use crate::sse::Parser;
use crate::target::Target;

/// The answer, and the way for posts.
pub(super) struct Answer {
    stream: Stream,
    input: Vec<u8>,
    /// For events; none where each line is a message.
    parser: Option<Parser>,
    /// Waits for the reply to connect, because only that says how to post.
    unsaid: Option<String>,
    host: String,
    posts: Connection,
    pub(super) talk: Talk,
}

impl Subscriber {
    /// Opens it with what can be said at first.
    pub(super) async fn open_answer(&mut self, transport: Transport) -> Result<Answer> {
        let (listens, events) = match transport {
            Transport::UniHttpStream => (true, false),
            Transport::UniSse => (true, true),
            Transport::Sse => (false, true),
            _ => (false, false),
        };
        let (first, unsaid) = if listens {
            (self.request(), None)
        } else if self.random.once_in(2) {
            (format!("{}\n{}", self.connect(), self.subscribes()), None)
        } else {
            (self.connect(), Some(self.subscribes()))
        };
        let door = self.around.door.clone();
        let request = opening(transport, &door, &first, events && !self.random.once_in(4));
        let (status, mut stream) = Connection::to(&door).stream(request.as_bytes()).await?;
        match status {
            200 => {}
            408 | 429 | 500..=599 => bail!(Ended("the stream was put off")),
            _ => {
                let words = super::words_of(&mut stream).await?;
                self.follows[0].broken(format!("the stream was answered {status} {words}"));
                bail!(Ended("the stream was refused"));
            }
        }
        let talk = Talk::new(listens, self.follows.len());
        let parser = events.then(Parser::default);
        // In a cluster posts may well come to another node.
        let posts = Connection::to(&door);
        Ok(Answer { stream, input: Vec::new(), parser, unsaid, host: door.host, posts, talk })
    }
}

/// `EventSource` can only get; others may bring what they say in the body as well.
fn opening(transport: Transport, door: &Target, first: &str, gets: bool) -> String {
    let (path, host) = (format!("/connection/{transport}"), &door.host);
    if gets {
        return format!("GET {path}?cf_connect={} HTTP/1.1\r\nHost: {host}\r\n\r\n", encoded(first));
    }
    let length = first.len();
    format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{first}")
}

impl Answer {
    pub(super) async fn fill(&mut self) -> Result<()> {
        if self.stream.next(&mut self.input).await? { Ok(()) } else { bail!(Ended("the stream ended")) }
    }

    /// Handles whole messages.
    pub(super) fn take(&mut self, follows: &mut [Follow], around: &Around) -> Result<()> {
        if let Some(parser) = &mut self.parser {
            for message in parser.take(&mut self.input) {
                self.talk.message(message.data.as_bytes(), follows, around)?;
            }
            return Ok(());
        }
        let Some(end) = memchr::memrchr(b'\n', &self.input) else { return Ok(()) };
        let lines: Vec<u8> = self.input.drain(..=end).collect();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.talk.message(line, follows, around)?;
        }
        Ok(())
    }

    /// Whether it can be said by now.
    pub(super) fn can_speak(&self) -> bool {
        self.talk.session.is_some() && self.unsaid.is_none()
    }

    /// Says what had to wait, and answers the pings that have come.
    pub(super) async fn answer(&mut self, follows: &mut [Follow]) -> Result<()> {
        if self.talk.session.is_none() {
            return Ok(());
        }
        if let Some(words) = self.unsaid.take() {
            self.say(&words, follows).await?;
        }
        for _ in 0..std::mem::take(&mut self.talk.pongs) {
            self.say("{}", follows).await?;
        }
        Ok(())
    }

    /// Posts it.
    pub(super) async fn say(&mut self, words: &str, follows: &mut [Follow]) -> Result<()> {
        let Some(whose) = &self.talk.session else { bail!(Ended("nobody said how to post")) };
        let body = json!({ "session": whose.session, "node": whose.node, "data": words }).to_string();
        let request = format!(
            "POST /emulation HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        let mut said = Vec::new();
        match self.posts.exchange(request.as_bytes(), &mut said).await? {
            204 => return Ok(()),
            404 => {
                // The node has gone, and then the answer ends as well.
                let end = async { while self.fill().await.is_ok() {} };
                if timeout(LEAVING, end).await.is_err() {
                    follows[0].broken("a post was answered 404, and the stream goes on");
                }
            }
            408 | 429 | 500..=599 => {}
            status => {
                let said = String::from_utf8_lossy(&said[..said.len().min(300)]).into_owned();
                follows[0].broken(format!("a post was answered {status} {said}"));
            }
        }
        bail!(Ended("a post was not taken"))
    }
}
