//! Joins messages into frames (protocol §1): a line feed between two, none at the end, and at most
//! [`MAX_MESSAGES`] in one. Keeps order, and never holds a message back: the caller takes what is
//! there at the end of its turn. Knows neither sockets nor what the messages say.

#[cfg(test)]
mod tests;

/// The most messages in one frame (protocol §13).
pub const MAX_MESSAGES: usize = 16;

/// Frames that are being filled.
#[derive(Debug, Default)]
pub struct Frames {
    full: Vec<String>,
    open: String,
    messages: usize,
}

impl Frames {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the message that `write` appends; one that writes nothing is no message.
    pub fn add(&mut self, write: impl FnOnce(&mut String)) {
        if self.messages == MAX_MESSAGES {
            self.close();
        }
        let before = self.open.len();
        if self.messages > 0 {
            self.open.push('\n');
        }
        let start = self.open.len();
        write(&mut self.open);
        if self.open.len() > start {
            self.messages += 1;
        } else {
            self.open.truncate(before);
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.messages == 0 && self.full.is_empty()
    }

    /// All frames so far, in order, none of them empty.
    pub fn take(&mut self) -> Vec<String> {
        if self.messages > 0 {
            self.close();
        }
        std::mem::take(&mut self.full)
    }

    fn close(&mut self) {
        self.full.push(std::mem::take(&mut self.open));
        self.messages = 0;
    }
}
