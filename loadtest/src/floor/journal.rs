//! What the floor does with webhooks: appends the bodies of a turn to a file, syncs it once, then
//! answers, and writes an event to whoever listens to the stream. No signature, no duplicates, no
//! database: the price of making a request durable, and no more.

use std::fs::File;
use std::io::Write as _;

use anyhow::{Context, Result};
use memchr::memmem;

/// The head of the stream, which goes on until somebody closes.
pub const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 17\r\n\r\n{\"received\":true}";
/// What stands before the run's id, and for the last time there.
const RUN: &[u8] = b",\"id\":";
const DIGITS: usize = 16;

/// What was posted and is not durable.
#[derive(Default)]
pub struct Journal {
    /// Made with the first webhook, and without a name: it goes away with the process.
    file: Option<File>,
    bytes: Vec<u8>,
    /// Who posted, and which run.
    posted: Vec<(usize, String)>,
    listeners: Vec<usize>,
    offset: u64,
}

impl Journal {
    pub fn listen(&mut self, index: usize) {
        self.listeners.push(index);
    }

    pub fn post(&mut self, index: usize, body: &[u8]) -> Result<()> {
        let at = memmem::rfind(body, RUN).context("no run")? + RUN.len();
        let run = body.get(at..at + DIGITS).context("no run")?;
        self.bytes.extend_from_slice(body);
        self.posted.push((index, String::from_utf8(run.to_vec())?));
        Ok(())
    }

    /// Makes everything durable; gives what to send to whom.
    pub fn commit(&mut self) -> Result<Vec<(usize, Vec<u8>)>> {
        if self.posted.is_empty() {
            return Ok(Vec::new());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(nameless()?),
        };
        file.write_all(&self.bytes)?;
        file.sync_data()?;
        self.bytes.clear();
        let mut out = Vec::with_capacity(self.posted.len() * (1 + self.listeners.len()));
        for (index, run) in self.posted.drain(..) {
            self.offset += 1;
            out.push((index, ACCEPTED.to_vec()));
            let offset = self.offset;
            let event = format!(
                "id: f.{offset}\nevent: workflow:completed\ndata: {{\"data\":{{\"runId\":{run}}}}}\n\n"
            );
            out.extend(self.listeners.iter().map(|listener| (*listener, event.clone().into_bytes())));
        }
        Ok(out)
    }
}

/// A file in the working directory that nobody else can find.
fn nameless() -> Result<File> {
    let name = format!("campanile-floor-{}", std::process::id());
    let file = File::create_new(&name).context("cannot write here")?;
    std::fs::remove_file(name)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_durable_is_answered_and_streamed_in_order() {
        let mut journal = Journal::default();
        journal.listen(9);
        assert!(journal.commit().unwrap().is_empty());
        let mut length = 0;
        for run in ["1111111111111111", "2222222222222222"] {
            let body = format!("{{\"x\":{{\"id\":1}},\"run\":{{\"a\":1,\"id\":{run},\"n\":1}}}}");
            journal.post(3, body.as_bytes()).unwrap();
            length += body.len() as u64;
        }
        assert!(journal.post(3, b"{}").is_err());
        let sent = journal.commit().unwrap();
        assert_eq!(sent.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [3, 9, 3, 9]);
        let second = String::from_utf8(sent[3].1.clone()).unwrap();
        assert!(second.starts_with("id: f.2\n") && second.contains("2222222222222222"), "{second}");
        assert_eq!(journal.file.unwrap().metadata().unwrap().len(), length);
    }
}
