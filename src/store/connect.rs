//! Opens connections to PostgreSQL: all of ours are opened here, with TLS as the address says.

use std::error::Error as _;
use std::fmt::Write as _;

use diesel_async::AsyncPgConnection;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsStream};
use tokio_postgres::{Config, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::StoreError;
use crate::net::tls::{PostgresAddress, TlsError, Trust};

/// What libpq offers too; PostgreSQL 17 insists on it where TLS begins at once.
const PROTOCOL: &[u8] = b"postgresql";

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// TLS is not possible as it was asked for.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The driver's words are short; the reason is behind them.
    #[error("{}", with_reasons(.0))]
    Driver(#[from] tokio_postgres::Error),
    /// The first words on it.
    #[error(transparent)]
    Diesel(#[from] diesel::ConnectionError),
}

impl From<ConnectError> for StoreError {
    fn from(error: ConnectError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// Opens a connection, which belongs to the runtime that this runs on.
pub(super) async fn connect(url: &str) -> Result<AsyncPgConnection, ConnectError> {
    let address: PostgresAddress = url.parse()?;
    let mut config: Config = address.url.parse()?;
    // As in libpq: what does not leave the machine is not encrypted, and the server would refuse.
    let local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    let Some(mut tls) = address.trust.client()?.filter(|_| !local || !config.get_hostaddrs().is_empty())
    else {
        return open(config.ssl_mode(SslMode::Disable), NoTls).await;
    };
    tls.alpn_protocols = vec![PROTOCOL.to_vec()];
    let tls = MakeRustlsConnect::new(tls);
    if address.trust != Trust::Prefer {
        return open(config.ssl_mode(SslMode::Require), tls).await;
    }
    match open(config.ssl_mode(SslMode::Prefer), tls).await {
        Err(ConnectError::Driver(error)) if is_about_tls(&error) => {
            open(config.ssl_mode(SslMode::Disable), NoTls).await
        }
        done => done,
    }
}

async fn open<T>(config: &Config, tls: T) -> Result<AsyncPgConnection, ConnectError>
where
    T: MakeTlsConnect<Socket, Stream: TlsStream + Unpin + Send + 'static>,
{
    let (client, connection) = config.connect(tls).await?;
    Ok(AsyncPgConnection::try_from_client_and_connection(client, connection).await?)
}

/// Whether the server may take us without TLS: the handshake failed, or it lets this user in
/// without TLS alone.
fn is_about_tls(error: &tokio_postgres::Error) -> bool {
    let in_handshake = || {
        let source = error.source()?.downcast_ref::<std::io::Error>()?;
        Some(source.get_ref()?.is::<rustls::Error>())
    };
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) || in_handshake() == Some(true)
}

fn with_reasons(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        let _ = write!(text, ": {error}");
        reason = error.source();
    }
    text
}
