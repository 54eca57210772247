//! A store for one test: a SQLite file in a folder of its own, or a schema of its own in the
//! Postgres of `tests/run`. Both are gone after the test, also when it fails.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use campanile::bus::{Bus, Content, HubEvent};
use campanile::domain::channel::ChannelName;
use campanile::domain::delivery::{DeliveryId, DeliveryStatus};
use campanile::domain::event::{Event, NewEvent, Time};
use campanile::domain::options::Retention;
use campanile::domain::position::{Epoch, Position};
use campanile::publish::{Committed, PublishError, Publisher, Reaction, UnitOfWork};
use campanile::store::deliveries::{NewDelivery, Payload};
use campanile::store::log::{self, Appended, Bounds, LogTx, Page, PageRequest};
use campanile::store::{self, Conn, Location, Options, ReadTx, Store, Ts};
use diesel::sql_types::{BigInt, Text};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::app::Backend;
pub use super::change::*;
use super::database::Database;

/// Makes of each named `async fn(TestStore)` a test on SQLite and one on Postgres.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $test() { $crate::support::store::on_sqlite(super::$test) })+
        }
        mod postgres {
            $(#[test] fn $test() { $crate::support::store::on_postgres(super::$test) })+
        }
    };
}
pub(crate) use on_both;

/// A store and how it was opened, so that it can be opened again.
pub struct TestStore {
    pub store: Store,
    pub options: Options,
}

/// All that is read of a channel without history's bounds in the way.
pub const FOREVER: Retention = Retention { events: 1 << 40, age: Duration::from_secs(1000 * 24 * 3600) };

pub fn on_sqlite<F: Future<Output = ()>>(test: impl FnOnce(TestStore) -> F) {
    in_folder(async |location| test(TestStore::open(options(location)).await).await);
}

/// Runs `test` with a new, empty folder for SQLite.
pub fn in_folder(test: impl AsyncFnOnce(Location)) {
    in_database(Backend::Sqlite, test);
}

pub fn on_postgres<F: Future<Output = ()>>(test: impl FnOnce(TestStore) -> F) {
    in_schema(async |location| test(TestStore::open(options(location)).await).await);
}

/// Runs `test` with a new, empty schema of Postgres.
pub fn in_schema(test: impl AsyncFnOnce(Location)) {
    in_database(Backend::Postgres, test);
}

fn in_database(backend: Backend, test: impl AsyncFnOnce(Location)) {
    runtime().block_on(async {
        let database = Database::new(backend).await;
        test(database.location()).await;
    });
}

/// `url` with a setting that all its sessions begin with.
pub fn with_setting(url: &str, name: &str, value: &str) -> String {
    match url.find("options=") {
        Some(_) => format!("{url}%20-c{name}%3D{value}"),
        None => format!("{url}{}options=-c{name}%3D{value}", if url.contains('?') { '&' } else { '?' }),
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

pub fn options(location: Location) -> Options {
    Options {
        location,
        private_folder: false,
        readers: 2,
        pool_size: 8,
        deadline: Duration::from_secs(5),
        prepared_statements: None,
        allow_data_loss: false,
        metrics: Arc::default(),
    }
}

/// A session on Postgres beside the store's own.
pub async fn session(url: &str) -> tokio_postgres::Client {
    testkit::postgres::session(url).await.expect("Postgres answers")
}

impl TestStore {
    pub async fn open(options: Options) -> Self {
        let store = Store::open(&options).await.expect("the store opens");
        Self { store, options }
    }

    /// Closes the store and opens it again.
    pub async fn reopen(self) -> Self {
        let Self { store, options } = self;
        drop(store);
        Self::open(options).await
    }

    /// The same data through another handle, as a second node has it; only on Postgres.
    pub async fn second(&self) -> Self {
        Self::open(self.options.clone()).await
    }

    /// A session beside the store's own; only on Postgres.
    pub async fn session(&self) -> tokio_postgres::Client {
        session(&self.url()).await
    }

    /// Ends all sessions of the store, as a restart of the server does.
    pub async fn end_sessions(&self) {
        let admin = self.session().await;
        let ours = "application_name = current_setting('application_name') AND pid <> pg_backend_pid()";
        let end = format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {ours}");
        admin.query(&end, &[]).await.expect("the sessions end");
    }

    pub fn url(&self) -> String {
        match &self.options.location {
            Location::Postgres { url, .. } => url.clone(),
            Location::Sqlite { path } => panic!("{} is no server", path.display()),
        }
    }

    pub fn file(&self) -> PathBuf {
        match &self.options.location {
            Location::Sqlite { path } => path.clone(),
            Location::Postgres { .. } => panic!("a server is no file"),
        }
    }

    pub async fn read<T, W>(&self, work: W) -> T
    where
        T: Send + 'static,
        W: for<'c, 't> FnOnce(&'c mut ReadTx<'t>) -> BoxFuture<'c, store::Result<T>> + Send + 'static,
    {
        self.store.read(work).await.expect("the read succeeds")
    }

    pub async fn write<T, W>(&self, work: W) -> T
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, store::Result<T>> + Send + 'static,
    {
        self.store.write(work).await.expect("the transaction commits")
    }

    pub async fn write_log<T, W>(&self, work: W) -> T
    where
        T: Send + 'static,
        W: for<'c> FnOnce(LogTx<'c>) -> BoxFuture<'c, store::Result<T>> + Send + 'static,
    {
        self.store.write_log(work).await.expect("the transaction commits")
    }

    /// Runs a statement that both backends understand.
    pub async fn execute(&self, statement: &'static str) -> usize {
        self.write(move |conn| conn.execute(diesel::sql_query(statement))).await
    }

    /// The rows of `table`.
    pub async fn count(&self, table: &'static str) -> i64 {
        self.number(format!("SELECT count(*) AS number FROM {table}")).await
    }

    /// What a query says under the name `number`.
    pub async fn number(&self, query: String) -> i64 {
        #[derive(diesel::QueryableByName)]
        struct Number {
            #[diesel(sql_type = BigInt)]
            number: i64,
        }
        let row: Number = self.read(move |conn| conn.one(diesel::sql_query(query))).await;
        row.number
    }

    /// What a query says under the name `text`.
    pub async fn text(&self, query: &'static str) -> String {
        #[derive(diesel::QueryableByName)]
        struct Words {
            #[diesel(sql_type = Text)]
            text: String,
        }
        let row: Words = self.read(move |conn| conn.one(diesel::sql_query(query))).await;
        row.text
    }

    /// Appends events to the log without a publisher.
    pub async fn append(&self, events: Vec<NewEvent>) -> Vec<Position> {
        let append = self.write_log(move |mut tx| {
            async move {
                let events: Vec<&NewEvent> = events.iter().collect();
                log::append(&mut tx, &[log::Append { events: &events, ..log::Append::default() }]).await
            }
            .boxed()
        });
        match append.await.pop() {
            Some(Appended::New(positions)) => positions,
            other => panic!("nothing was appended: {other:?}"),
        }
    }

    /// Appends `count` events to `channel`, `{"n":1}` and so on.
    pub async fn fill(&self, channel: &ChannelName, count: u64) -> Vec<Position> {
        self.append((1..=count).map(|n| event(channel, &format!("{{\"n\":{n}}}"))).collect()).await
    }

    pub async fn head(&self, channel: &ChannelName) -> Position {
        let channel = channel.clone();
        self.read(move |tx| async move { tx.head(&channel).await }.boxed()).await
    }

    pub async fn bounds(&self, channel: &ChannelName, kept: Retention) -> Bounds {
        let channel = channel.clone();
        self.read(move |tx| async move { tx.bounds(&channel, kept).await }.boxed()).await
    }

    pub async fn page(
        &self,
        channel: &ChannelName,
        kept: Retention,
        from: Option<&Position>,
        until: Option<u64>,
        limit: u32,
    ) -> Page {
        let (channel, from) = (channel.clone(), from.cloned());
        self.read(move |tx| {
            async move {
                let asked = PageRequest { from: from.as_ref(), until, limit, bytes: None };
                tx.page(&channel, kept, asked).await
            }
            .boxed()
        })
        .await
    }

    /// All events that are stored for `channel`, whatever retention says.
    pub async fn stored(&self, channel: &ChannelName) -> Vec<Event> {
        let channel = channel.clone();
        self.read(move |conn| {
            async move { log::read_after(conn, &channel, 0, i64::MAX as u64, u32::MAX).await }.boxed()
        })
        .await
    }

    /// Checks that what is stored of `channel` is 1, 2, 3 … up to its head, and answers it.
    pub async fn whole_log(&self, channel: &ChannelName) -> Vec<Event> {
        let (events, head) = (self.stored(channel).await, self.head(channel).await);
        let offsets: Vec<u64> = events.iter().map(|event| event.offset).collect();
        assert_eq!(offsets, (1..=head.offset).collect::<Vec<_>>(), "{channel:?} is whole");
        events
    }

    /// Makes the events of `channel` up to `offset` older by `age`.
    pub async fn age(&self, channel: &ChannelName, offset: u64, age: Duration) {
        use campanile::store::schema::events::dsl;
        use diesel::prelude::*;
        let (old, channel) = (self.store.timestamp().minus(age), channel.clone());
        self.write(move |conn| {
            async move {
                let rows = dsl::events
                    .filter(dsl::channel.eq(channel.as_str()))
                    .filter(dsl::offset.le(offset as i64));
                conn.execute(diesel::update(rows).set(dsl::created_at.eq(old))).await
            }
            .boxed()
        })
        .await;
    }

    /// A publisher at work, and what its bus delivers. One lane on SQLite, four on Postgres.
    pub fn publisher(&self) -> (Publisher, RecordedEvents) {
        let (publisher, recorded, work) = self.idle_publisher();
        tokio::spawn(work);
        (publisher, recorded)
    }

    /// A publisher that takes nothing from its queue until its work is started.
    pub fn idle_publisher(&self) -> (Publisher, RecordedEvents, impl Future<Output = ()> + Send + 'static) {
        self.reacting_publisher(Vec::new())
    }

    pub fn reacting_publisher(
        &self,
        reactions: Vec<Box<dyn Reaction>>,
    ) -> (Publisher, RecordedEvents, impl Future<Output = ()> + Send + 'static) {
        let recorded = RecordedEvents::default();
        let recorder = recorded.0.clone();
        let bus = Bus::local(Uuid::nil());
        let record = Arc::new(move |event| recorder.lock().expect("the lock").push(event));
        let (publisher, work) = Publisher::new(self.store.clone(), bus, record, reactions, Arc::default());
        (publisher, recorded, work)
    }

    /// Commits `units` in one transaction, as far as none of them fails.
    pub async fn commit_together(&self, units: Vec<UnitOfWork>) -> Vec<Result<Committed, PublishError>> {
        let (publisher, _, work) = self.idle_publisher();
        commit_together(&publisher, units, work).await
    }

    pub async fn commit(&self, unit: UnitOfWork) -> Committed {
        self.commit_together(vec![unit]).await.remove(0).expect("the unit commits")
    }
}

/// The events that a bus has delivered.
#[derive(Clone, Default)]
pub struct RecordedEvents(Arc<Mutex<Vec<HubEvent>>>);

impl RecordedEvents {
    /// The logged events that were announced for `channel`, with their epochs, in that order.
    pub fn logged(&self, channel: &ChannelName) -> Vec<(Epoch, Event)> {
        let events = self.0.lock().expect("the lock");
        let appended = events.iter().filter_map(|event| match event {
            HubEvent::Appended(announcements) => Some(announcements),
            _ => None,
        });
        let mut heard = Vec::new();
        for announcement in appended.flatten().filter(|a| a.channel == *channel) {
            if let Content::Logged { epoch, events } = &announcement.content {
                heard.extend(events.iter().map(|event| (epoch.clone(), event.clone())));
            }
        }
        heard
    }

    /// The channels that nodes were asked to check.
    pub fn checks(&self) -> Vec<ChannelName> {
        let events = self.0.lock().expect("the lock");
        let checks = events.iter().filter_map(|event| match event {
            HubEvent::Check(channels) => Some(channels.clone()),
            _ => None,
        });
        checks.flatten().collect()
    }

    pub fn events(&self) -> Vec<HubEvent> {
        self.0.lock().expect("the lock").clone()
    }
}

/// Commits units that wait in the queue of a publisher until its work begins.
pub async fn commit_together(
    publisher: &Publisher,
    units: impl IntoIterator<Item = UnitOfWork>,
    work: impl Future<Output = ()> + Send + 'static,
) -> Vec<Result<Committed, PublishError>> {
    let mut commits = futures_util::future::join_all(units.into_iter().map(|unit| publisher.commit(unit)));
    // The first poll puts all of them into the queue.
    assert!(futures_util::poll!(&mut commits).is_pending());
    tokio::spawn(work);
    commits.await
}

pub fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name).expect("a channel name")
}

pub fn event(channel: &ChannelName, data: &str) -> NewEvent {
    NewEvent::new(channel.clone(), Uuid::now_v7(), "test:said", data.into())
}

/// A unit of one event.
pub fn unit(channel: &ChannelName, data: &str) -> UnitOfWork {
    UnitOfWork::of(vec![event(channel, data)])
}

pub fn offsets(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.offset).collect()
}

/// The events of a page that lost nothing.
pub fn events_of(page: Page) -> Vec<Event> {
    match page {
        Page::Events { events, .. } => events,
        Page::Lost(bounds) => panic!("the place is lost: {bounds:?}"),
    }
}

/// The bounds of a page that says the place is lost.
pub fn lost(page: Page) -> Bounds {
    match page {
        Page::Lost(bounds) => bounds,
        Page::Events { events, .. } => panic!("nothing is lost: {:?}", offsets(&events)),
    }
}

pub fn ago(store: &Store, length: Duration) -> Ts {
    store.timestamp().minus(length)
}

/// The first commit to `channel` after `server` was replaced by one that may lack what the old one had, and our
/// sessions ended by `ends`: it is in another history than those before.
pub async fn commit_after_failover(
    publisher: &Publisher,
    channel: &ChannelName,
    server: &tokio_postgres::Client,
    ends: impl Future<Output = ()>,
) -> Position {
    let Ok(Committed::Done(before)) = publisher.commit(unit(channel, "1")).await else {
        panic!("it commits")
    };
    server.batch_execute("UPDATE meta SET value = 'another' WHERE key = 'marker'").await.unwrap();
    ends.await;
    let mut after = loop {
        match publisher.commit(unit(channel, "2")).await {
            Ok(Committed::Done(positions)) => break positions,
            Err(PublishError::Unconfirmed(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_ne!(after[0].epoch, before[0].epoch);
    after.swap_remove(0)
}

/// Waits until `holds`, where there is no signal to wait for.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}: not within ten seconds");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A delivery that nobody has interpreted.
pub fn delivery(id: &str, received_at: Time) -> NewDelivery {
    NewDelivery {
        id: Uuid::now_v7(),
        delivery_id: DeliveryId::parse(id).expect("a delivery id"),
        event: "push".into(),
        action: None,
        repo: Some("acme/api".into()),
        payload: Payload::pack(b"{}").expect("it packs"),
        status: DeliveryStatus::Processed,
        error: None,
        received_at,
    }
}
