//! Opens connections to PostgreSQL: all of ours are opened here, with TLS as the address says.

use std::error::Error as _;

use diesel_async::AsyncPgConnection;
use tokio::task::AbortHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connection::{PgConnection, Statements};
use crate::net::tls::{PostgresAddress, TlsError, Trust};
use crate::store::error::{StoreError, with_reasons};

/// What libpq offers too; PostgreSQL 17 insists on it where TLS begins at once.
const PROTOCOL: &[u8] = b"postgresql";

#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum ConnectError {
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

/// Opens a connection for Diesel's queries.
pub(in crate::store) async fn connect(url: &str, statements: Statements) -> Result<PgConnection, StoreError> {
    let (client, driver) = connect_as::<Driven>(url).await?;
    Ok(PgConnection::begin(client, driver, statements).await?)
}

/// Opens a connection, which belongs to the runtime that this runs on.
pub(in crate::store) async fn connect_as<S: Session>(url: &str) -> Result<S, ConnectError> {
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

async fn open<S: Session, T>(config: &Config, tls: T) -> Result<S, ConnectError>
where
    T: MakeTlsConnect<Socket, Stream: TlsStream + Unpin + Send + 'static>,
{
    let (client, connection) = config.connect(tls).await?;
    S::over(client, connection).await
}

/// What a new connection becomes.
pub(in crate::store) trait Session: Sized {
    fn over<S>(
        client: Client,
        connection: Connection<Socket, S>,
    ) -> impl Future<Output = Result<Self, ConnectError>> + Send
    where
        S: TlsStream + Unpin + Send + 'static;
}

/// With what Diesel's migrations and LISTEN need.
impl Session for AsyncPgConnection {
    async fn over<S>(client: Client, connection: Connection<Socket, S>) -> Result<Self, ConnectError>
    where
        S: TlsStream + Unpin + Send + 'static,
    {
        Ok(Self::try_from_client_and_connection(client, connection).await?)
    }
}

/// With the task that carries it, which is to be aborted.
type Driven = (Client, AbortHandle);

impl Session for Driven {
    async fn over<S>(client: Client, connection: Connection<Socket, S>) -> Result<Self, ConnectError>
    where
        S: TlsStream + Unpin + Send + 'static,
    {
        // Whoever waits for an answer hears how it ended.
        let driver = tokio::spawn(async { drop(connection.await) });
        Ok((client, driver.abort_handle()))
    }
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
