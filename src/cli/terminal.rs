//! The terminal: standard input, standard output, questions. Text from outside is sanitized before it is
//! printed.

use std::io::{self, BufRead as _, ErrorKind, IsTerminal as _, Read as _, Write as _};

use anyhow::Context as _;

/// The most that is read from a file or from standard input.
const LARGEST_INPUT: u64 = 256 << 20;

pub(super) fn print_line(line: impl std::fmt::Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// Whether `error` is a broken pipe because the reader of our output has exited, as `head` does.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let left = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(left))
}

/// The bytes of the file `name`, or of standard input for `-`.
pub(super) fn read_input(name: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if name == "-" {
        let read = io::stdin().lock().take(LARGEST_INPUT + 1).read_to_end(&mut bytes);
        read.context("cannot read standard input")?;
    } else {
        let file = std::fs::File::open(name).with_context(|| format!("cannot open {name}"))?;
        let read = file.take(LARGEST_INPUT + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("cannot read {name}"))?;
    }
    anyhow::ensure!(bytes.len() as u64 <= LARGEST_INPUT, "{name} is larger than {} MiB", LARGEST_INPUT >> 20);
    Ok(bytes)
}

/// Asks on the terminal whether to go on. Without one nobody can answer, so `flag` is demanded.
pub(super) fn confirm(question: &str, flag: &str) -> anyhow::Result<bool> {
    anyhow::ensure!(io::stdin().is_terminal(), "there is no terminal to confirm this: pass {flag}");
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// `text` without control characters and without characters that change the direction of text.
pub(super) fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_told_what_to_do() {
        assert_eq!(printable("a\u{202e}b\u{9b}c\x1b[0m é"), "a\u{fffd}b\u{fffd}c\u{fffd}[0m é");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        assert_eq!(read_input("no such file.json").unwrap_err().to_string(), "cannot open no such file.json");
    }

    #[test]
    fn only_a_broken_pipe_means_that_the_reader_left() {
        let error = |kind| anyhow::Error::from(io::Error::from(kind)).context("cannot write");
        assert!(is_broken_pipe(&error(ErrorKind::BrokenPipe)));
        assert!(!is_broken_pipe(&error(ErrorKind::StorageFull)));
    }
}
