-- Times are microseconds since 1970 (UTC), ids are 16-byte UUIDs, JSON is text.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
-- The store's own name: a restore gets a new one, so that no epoch ever names two histories.
INSERT INTO meta (key, value) VALUES ('marker', lower(hex(randomblob(6))));
-- The oldest binary that may work on this schema.
INSERT INTO meta (key, value) VALUES ('oldest_binary', '0.1.0');

CREATE TABLE channels (
    name          TEXT PRIMARY KEY NOT NULL,
    epoch         TEXT NOT NULL DEFAULT '', -- the channel's own part of its epoch
    head          INTEGER NOT NULL,
    version       INTEGER NOT NULL DEFAULT 0,
    version_epoch TEXT NOT NULL DEFAULT '',
    updated_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A rowid table: rows are too large for WITHOUT ROWID to pay.
CREATE TABLE events (
    channel    TEXT NOT NULL,
    "offset"   INTEGER NOT NULL,
    event_id   BLOB NOT NULL,
    kind       TEXT NOT NULL,
    data       TEXT NOT NULL,
    tags       TEXT,
    info       TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (channel, "offset")
) STRICT;

CREATE TABLE idempotency (
    channel    TEXT NOT NULL,
    key        TEXT NOT NULL,
    epoch      TEXT NOT NULL,
    "offset"   INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (channel, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE repos (
    id              BLOB PRIMARY KEY NOT NULL,
    github_id       INTEGER NOT NULL UNIQUE,
    owner           TEXT NOT NULL,
    name            TEXT NOT NULL,
    default_branch  TEXT,
    private         INTEGER NOT NULL DEFAULT 0,
    installation_id INTEGER,
    webhook_enabled INTEGER NOT NULL DEFAULT 1,
    latest_scan_id  BLOB,
    latest_coverage INTEGER,                 -- basis points: 10,000 is 100 %
    latest_scan_at  INTEGER,
    removed_at      INTEGER,
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX repos_by_name ON repos (owner, name);

CREATE TABLE workflow_runs (
    run_id        INTEGER PRIMARY KEY NOT NULL,
    repo_id       BLOB NOT NULL,
    workflow_id   INTEGER NOT NULL,
    workflow_name TEXT,
    run_number    INTEGER,
    status        TEXT NOT NULL,
    status_rank   INTEGER NOT NULL,
    conclusion    TEXT,
    event         TEXT,
    branch        TEXT,
    commit_sha    TEXT,
    attempt       INTEGER NOT NULL,
    url           TEXT,
    started_at    INTEGER,
    updated_at    INTEGER NOT NULL,
    created_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX workflow_runs_by_repo ON workflow_runs (repo_id, run_id);
CREATE INDEX workflow_runs_by_day ON workflow_runs (repo_id, created_at);

CREATE TABLE workflow_jobs (
    job_id        INTEGER PRIMARY KEY NOT NULL,
    run_id        INTEGER NOT NULL,
    repo_id       BLOB NOT NULL,
    attempt       INTEGER NOT NULL,
    name          TEXT NOT NULL,
    workflow_name TEXT,
    status        TEXT NOT NULL,
    status_rank   INTEGER NOT NULL,
    conclusion    TEXT,
    url           TEXT,
    steps         TEXT NOT NULL,
    started_at    INTEGER,
    completed_at  INTEGER
) STRICT;
CREATE INDEX workflow_jobs_by_run ON workflow_jobs (run_id);

CREATE TABLE webhook_deliveries (
    id           BLOB PRIMARY KEY NOT NULL,
    delivery_id  TEXT NOT NULL UNIQUE,
    event        TEXT NOT NULL,
    action       TEXT,
    repo         TEXT,
    payload      BLOB,                       -- zstd of the JSON text, dropped after 30 days
    status       TEXT NOT NULL CHECK (status IN ('processed', 'ignored', 'failed')),
    error        TEXT,
    received_at  INTEGER NOT NULL,
    processed_at INTEGER
) STRICT;
