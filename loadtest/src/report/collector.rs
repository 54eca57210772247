//! Collects the sections of the scenarios of a suite. The collector is local to the running task, so that
//! a scenario need not know whether it has a report of its own.

use std::sync::{Arc, Mutex};

use anyhow::Result;

use super::{Options, Report, Section, command};

tokio::task_local! {
    static COLLECTOR: Arc<Collector>;
    static COMMAND: String;
}

/// The sections so far.
#[derive(Debug, Default)]
pub struct Collector(Mutex<Vec<Section>>);

impl Collector {
    /// Runs a scenario whose sections go into this collector, and that this command would run by itself.
    pub async fn collect<T>(self: &Arc<Self>, command: String, scenario: impl Future<Output = T>) -> T {
        COLLECTOR.scope(self.clone(), COMMAND.scope(command, scenario)).await
    }

    /// Adds a section.
    pub fn add(&self, section: Section) {
        self.0.lock().expect("no thread panics while adding").push(section);
    }

    /// What has been added.
    pub fn sections(&self) -> Vec<Section> {
        self.0.lock().expect("no thread panics while adding").clone()
    }
}

/// The command that runs this scenario.
pub fn command() -> String {
    COMMAND.try_with(String::clone).unwrap_or_else(|_| command::shown())
}

/// Submits a section: to the collector of the suite, or as a report of its own.
pub fn submit(section: Section, options: &Options) -> Result<()> {
    let mut section = Some(section);
    let _ =
        COLLECTOR.try_with(|collector| section.take().into_iter().for_each(|section| collector.add(section)));
    let Some(section) = section else { return Ok(()) };
    let report = Report::new(vec![section]);
    report.write(options)?;
    report.judge(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_section_goes_to_the_collector_or_into_files_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("report.json");
        let options = Options { json: Some(file.clone()), ..Options::default() };
        let collector = Arc::new(Collector::default());
        collector.collect(String::new(), async { submit(Section::default(), &options) }).await.unwrap();
        assert_eq!((collector.sections().len(), file.exists()), (1, false));
        submit(Section::default(), &options).unwrap();
        assert_eq!((collector.sections().len(), file.exists()), (1, true));
    }
}
