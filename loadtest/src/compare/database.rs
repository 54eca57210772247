//! The database of a gateway that is started for a round.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use testkit::postgres::Postgres;

/// What a gateway that is started here keeps its log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Database {
    /// A file in the gateway's folder.
    Sqlite,
    /// A server started for the run, with an empty database. It shares the gateway's core.
    Postgres,
}

impl Database {
    /// Starts the server and makes the gateway's database, if this is one with a server.
    pub async fn start(
        self,
        parent: Option<&Path>,
        core: Option<usize>,
    ) -> Result<Option<(Postgres, String)>> {
        if self == Self::Sqlite {
            return Ok(None);
        }
        let server = Postgres::start_in(parent, &[], core).await?;
        let url = server.create_database("campanile").await?;
        Ok(Some((server, url)))
    }
}
