//! Who gets the section of a scenario: the report of its own, or that of the session it is part of.
//! The session's book lies open beside the running task, so that a scenario need not know of it.

use std::sync::{Arc, Mutex};

use anyhow::Result;

use super::{Options, Report, Section, command};

tokio::task_local! {
    static OPEN: Arc<Book>;
    static COMMAND: String;
}

/// The sections of a session that goes on.
#[derive(Debug, Default)]
pub struct Book(Mutex<Vec<Section>>);

impl Book {
    /// Runs a scenario whose sections go into this book, and that this command would run by itself.
    pub async fn keep<T>(self: &Arc<Self>, command: String, scenario: impl Future<Output = T>) -> T {
        OPEN.scope(self.clone(), COMMAND.scope(command, scenario)).await
    }

    /// Adds a section.
    pub fn add(&self, section: Section) {
        self.0.lock().expect("nobody panics while adding").push(section);
    }

    /// What has been added.
    pub fn sections(&self) -> Vec<Section> {
        self.0.lock().expect("nobody panics while adding").clone()
    }
}

/// The command that runs this scenario.
pub fn command() -> String {
    COMMAND.try_with(String::clone).unwrap_or_else(|_| command::shown())
}

/// Hands a section in: to the open book, or as a report of its own.
pub fn hand_in(section: Section, options: &Options) -> Result<()> {
    let mut section = Some(section);
    let _ = OPEN.try_with(|book| section.take().into_iter().for_each(|section| book.add(section)));
    let Some(section) = section else { return Ok(()) };
    let report = Report::new(vec![section]);
    report.write(options)?;
    report.judge(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_section_goes_into_the_open_book_or_into_files_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("report.json");
        let options = Options { json: Some(file.clone()), ..Options::default() };
        let book = Arc::new(Book::default());
        book.keep(String::new(), async { hand_in(Section::default(), &options) }).await.unwrap();
        assert_eq!((book.sections().len(), file.exists()), (1, false));
        hand_in(Section::default(), &options).unwrap();
        assert_eq!((book.sections().len(), file.exists()), (1, true));
    }
}
