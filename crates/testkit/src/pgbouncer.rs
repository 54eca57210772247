//! A PgBouncer before a PostgreSQL, in transaction mode: clients share a few sessions.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use tempfile::TempDir;

use crate::folder_in;
use crate::server::Server;

/// Where Debian has it, also for ordinary users.
const PROGRAM: &str = "/usr/sbin/pgbouncer";

/// The pooler, ended when this is dropped.
pub struct PgBouncer {
    server: Server,
    _folder: TempDir,
}

/// Whether this machine has it.
pub fn is_installed() -> bool {
    Path::new(PROGRAM).is_file()
}

impl PgBouncer {
    /// Leads to the server at `to`, for whoever comes, with this many sessions for each database.
    pub async fn start(to: SocketAddr, sessions: usize) -> Result<Self> {
        let folder = folder_in(None, "campanile-pgbouncer-")?;
        let configure = |port| {
            let config = format!(
                "[databases]\n* = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {port}\nauth_type = any\npool_mode = transaction\n\
                 default_pool_size = {sessions}\nmax_client_conn = 400\nserver_login_retry = 1\nunix_socket_dir =\n",
                to.ip(),
                to.port()
            );
            std::fs::write(folder.path().join("pgbouncer.ini"), config).expect("a configuration");
            vec!["pgbouncer.ini".to_owned()]
        };
        let server = Server::start(PROGRAM, folder.path(), configure).await?;
        Ok(Self { server, _folder: folder })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }
}
