//! SQLite: one thread that writes and several that read, each with a connection of its own. A work
//! item is a whole transaction or read, runs without waiting for anything, and is finished even when
//! its caller has gone away.
//!
//! The thread that writes has a runtime, for tasks that do little else than write: between two
//! transactions no other thread has to be woken.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{mpsc, oneshot};

use super::conn::Conn;
use super::error::{Result, StoreError};
use super::file_id::FileId;
use super::folder_lock::FolderLock;
use super::metrics::Metrics;

/// The most work items queued for the writer, and for all readers together.
const QUEUE: usize = 1024;

type WorkItem = Box<dyn FnOnce(&mut Conn) + Send>;

/// The threads. Dropping the last clone lets them finish their queues, and waits until they have
/// closed the database.
#[derive(Clone)]
pub(super) struct Threads(Arc<Running>);

struct Running {
    /// `None` once the threads are to end.
    queues: Option<Queues>,
    file: Arc<DatabaseFile>,
    threads: Vec<JoinHandle<()>>,
}

struct Queues {
    writer: mpsc::Sender<WorkItem>,
    readers: mpsc::Sender<WorkItem>,
    /// The runtime of the thread that writes.
    writing: Handle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queues = None;
        let own = std::thread::current().id();
        // The last handle may be dropped by one of the threads, which must not wait for itself.
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            // The thread has caught all panics.
            let _ = thread.join();
        }
    }
}

/// The file, for as long as it is open.
pub(super) struct DatabaseFile {
    path: PathBuf,
    /// Its log. SQLite puts it beside the file itself, not beside a symbolic link.
    log: PathBuf,
    metrics: Arc<Metrics>,
    /// The database and its log (WAL), once they are open.
    opened: OnceLock<[FileId; 2]>,
    _lock: FolderLock,
}

impl DatabaseFile {
    fn open(&self, side: Side) -> Result<Conn, diesel::ConnectionError> {
        Ok(Conn::sqlite(open(&self.path, side)?, self.metrics.clone()))
    }

    /// Whether what is open is still what stands under the name. SQLite itself goes on with a file that was
    /// deleted or replaced.
    pub(super) fn check(&self) -> Result<()> {
        let now = self.files().map_err(|error| StoreError::Unavailable(self.moved(&error)))?;
        if *self.opened.get_or_init(|| now) == now {
            return Ok(());
        }
        Err(StoreError::Unavailable(self.moved(&"another file is in its place")))
    }

    fn files(&self) -> io::Result<[FileId; 2]> {
        Ok([FileId::at(&self.path)?, FileId::at(&self.log)?])
    }

    fn moved(&self, reason: &dyn std::fmt::Display) -> String {
        let path = self.path.display();
        format!(
            "{path} or its -wal was moved or deleted ({reason}): put it back, or restart on what is there"
        )
    }
}

/// Which thread a piece of work needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Read,
    Write,
}

impl Threads {
    /// Opens the file for one writer and `readers` readers. The schema must be there already. The
    /// lock of the folder is kept until the last connection is closed.
    pub(super) fn start(
        path: &Path,
        readers: u32,
        lock: FolderLock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, diesel::ConnectionError> {
        let mut log = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
        log.push("-wal");
        let (path, log, opened) = (path.to_owned(), log.into(), OnceLock::new());
        let file = Arc::new(DatabaseFile { path, log, metrics, opened, _lock: lock });
        let mut threads = Vec::new();
        let runtime = runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a current-thread runtime with a timer needs no system resources");
        let writing = runtime.handle().clone();
        let writer = spawn_writer(runtime, file.open(Side::Write)?, &file, &mut threads);
        let connections =
            (0..readers.max(1)).map(|_| file.open(Side::Read)).collect::<Result<Vec<_>, _>>()?;
        let readers = spawn_readers(connections, &file, &mut threads);
        // All that is open is known from here on.
        let checked = file.check().map_err(|error| diesel::ConnectionError::BadConnection(error.to_string()));
        checked?;
        Ok(Self(Arc::new(Running { queues: Some(Queues { writer, readers, writing }), file, threads })))
    }

    pub(super) fn file(&self) -> Arc<DatabaseFile> {
        self.0.file.clone()
    }

    /// The runtime of the thread that writes. A task on it must not block the thread, and runs
    /// between two work items.
    pub(super) fn writing(&self) -> Option<&Handle> {
        self.0.queues.as_ref().map(|queues| &queues.writing)
    }

    /// Hands `work` to a thread and waits for its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        side: Side,
        work: impl FnOnce(&mut Conn) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let item: WorkItem = Box::new(move |conn| {
            // A caller that stopped waiting before the work began must find nothing changed.
            if !reply.is_closed() {
                let _ = reply.send(work(conn));
            }
        });
        let gone = || StoreError::Unavailable("the store has stopped".into());
        let queues = self.0.queues.as_ref().ok_or_else(gone)?;
        let queue = if side == Side::Write { &queues.writer } else { &queues.readers };
        queue.send(item).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// A connection with the settings that durability needs: WAL, and a sync at every commit.
pub(super) fn open(path: &Path, side: Side) -> Result<SqliteConnection, diesel::ConnectionError> {
    let mut conn = SqliteConnection::establish(&path.to_string_lossy())?;
    let read_only = u8::from(side == Side::Read);
    let cache_kib = if side == Side::Write { 65_536 } else { 8_192 };
    conn.batch_execute(&format!(
        "PRAGMA busy_timeout = 5000;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -{cache_kib};
         PRAGMA wal_autocheckpoint = 4000;
         PRAGMA query_only = {read_only};"
    ))
    .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

fn spawn_writer(
    runtime: Runtime,
    conn: Conn,
    file: &Arc<DatabaseFile>,
    threads: &mut Vec<JoinHandle<()>>,
) -> mpsc::Sender<WorkItem> {
    let (sender, mut items) = mpsc::channel(QUEUE);
    let mut thread = ConnectionThread { conn, file: file.clone(), side: Side::Write, broken: false };
    threads.push(start("store-write", move || {
        runtime.block_on(async {
            while let Some(item) = items.recv().await {
                thread.run(item);
                tokio::task::yield_now().await;
            }
        });
    }));
    sender
}

fn spawn_readers(
    connections: Vec<Conn>,
    file: &Arc<DatabaseFile>,
    threads: &mut Vec<JoinHandle<()>>,
) -> mpsc::Sender<WorkItem> {
    let (sender, items) = mpsc::channel::<WorkItem>(QUEUE);
    let items = Arc::new(Mutex::new(items));
    for conn in connections {
        let items = items.clone();
        let mut thread = ConnectionThread { conn, file: file.clone(), side: Side::Read, broken: false };
        threads.push(start("store-read", move || {
            loop {
                // The lock is held while waiting: the thread that has it takes the next item.
                let next = items.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                let Some(item) = next else { return };
                thread.run(item);
            }
        }));
    }
    sender
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).expect("the system can start a thread")
}

struct ConnectionThread {
    conn: Conn,
    file: Arc<DatabaseFile>,
    side: Side,
    /// The connection cannot be used.
    broken: bool,
}

impl ConnectionThread {
    fn run(&mut self, item: WorkItem) {
        if self.broken {
            self.replace();
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| item(&mut self.conn)));
        // A rollback fails when SQLite has rolled back by itself (the disk is full), and work that
        // panicked or waited leaves its transaction open: neither connection can begin another.
        if outcome.is_err() || !self.conn.is_idle() {
            tracing::error!(panicked = outcome.is_err(), "an operation on the store broke its connection");
            self.replace();
        }
    }

    fn replace(&mut self) {
        // SQLite would make a new file.
        let there = self.file.check();
        let opened = there.and_then(|()| {
            self.file.open(self.side).map_err(|error| StoreError::Unavailable(error.to_string()))
        });
        let fresh = opened.inspect_err(|error| tracing::error!(%error, "cannot reopen the database"));
        self.broken = fresh.map(|fresh| self.conn = fresh).is_err();
    }
}
