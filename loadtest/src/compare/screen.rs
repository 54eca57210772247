//! What people watch while it runs: the table so far and a line of progress, drawn over and over in a
//! terminal; elsewhere one line a round, so that a log stays readable. Draws to standard error.

use std::io::{IsTerminal as _, Write as _, stderr};

use rustix::termios::tcgetwinsize;

/// How often the picture is drawn anew.
pub const FRAME: std::time::Duration = std::time::Duration::from_millis(250);

/// The lower end of the terminal.
pub struct Screen {
    is_terminal: bool,
    /// Lines that the next picture replaces.
    drawn: usize,
}

impl Screen {
    /// Nothing drawn yet.
    pub fn new() -> Self {
        Self { is_terminal: stderr().is_terminal(), drawn: 0 }
    }

    /// Replaces what was drawn before.
    pub fn draw(&mut self, text: &str) {
        if self.is_terminal {
            let columns = tcgetwinsize(stderr()).map_or(80, |size| usize::from(size.ws_col.max(20)));
            let (picture, lines) = picture(text, self.drawn, columns);
            self.drawn = lines;
            let _ = stderr().write_all(picture.as_bytes());
        }
    }

    /// Takes it away.
    pub fn clear(&mut self) {
        self.draw("");
    }

    /// A line that stays, where nobody watches.
    pub fn note(&self, text: &str) {
        if !self.is_terminal {
            eprintln!("{text}");
        }
    }
}

/// What moves the cursor up, clears what is there, and draws; and how many lines that took. No line
/// may wrap, or the next picture would not find its start.
fn picture(text: &str, drawn: usize, columns: usize) -> (String, usize) {
    let mut out = match drawn {
        0 => "\r\x1b[J".to_owned(),
        up => format!("\r\x1b[{up}A\x1b[J"),
    };
    for line in text.lines() {
        out.extend(line.chars().take(columns - 1));
        out.push('\n');
    }
    (out, text.lines().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_replaces_the_one_before_and_never_wraps() {
        assert_eq!(picture("abc\nlonger than it\n", 0, 10), ("\r\x1b[Jabc\nlonger th\n".to_owned(), 2));
        assert_eq!(picture("x", 2, 10), ("\r\x1b[2A\x1b[Jx\n".to_owned(), 1));
        assert_eq!(picture("", 3, 10), ("\r\x1b[3A\x1b[J".to_owned(), 0));
    }
}
