-- Text that is compared or ordered has COLLATE "C", so that both stores agree on the order.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
-- Part of the store's generation, beside the system id and the timeline.
INSERT INTO meta (key, value) VALUES ('marker', substr(md5(gen_random_uuid()::text), 1, 12));
-- The oldest binary that may work on this schema.
INSERT INTO meta (key, value) VALUES ('oldest_binary', '0.1.0');

-- Room on each page, so that moving a head stays a heap-only update.
CREATE TABLE channels (
    name          TEXT COLLATE "C" PRIMARY KEY,
    epoch         TEXT NOT NULL DEFAULT '', -- the channel's own part of its epoch
    head          BIGINT NOT NULL,
    version       BIGINT NOT NULL DEFAULT 0,
    version_epoch TEXT NOT NULL DEFAULT '',
    updated_at    TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE events (
    channel    TEXT COLLATE "C" NOT NULL,
    "offset"   BIGINT NOT NULL,
    event_id   UUID NOT NULL,
    kind       TEXT NOT NULL,
    data       TEXT NOT NULL,
    tags       TEXT,
    info       TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (channel, "offset")
);

CREATE TABLE idempotency (
    channel    TEXT COLLATE "C" NOT NULL,
    key        TEXT COLLATE "C" NOT NULL,
    epoch      TEXT NOT NULL,
    "offset"   BIGINT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (channel, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE repos (
    id              UUID PRIMARY KEY,
    github_id       BIGINT NOT NULL UNIQUE,
    owner           TEXT COLLATE "C" NOT NULL,
    name            TEXT COLLATE "C" NOT NULL,
    default_branch  TEXT,
    private         BOOLEAN NOT NULL DEFAULT FALSE,
    installation_id BIGINT,
    webhook_enabled BOOLEAN NOT NULL DEFAULT TRUE,
    latest_scan_id  UUID,
    latest_coverage INTEGER,                 -- basis points: 10,000 is 100 %
    latest_scan_at  TIMESTAMPTZ,
    removed_at      TIMESTAMPTZ,
    created_at      TIMESTAMPTZ NOT NULL,
    updated_at      TIMESTAMPTZ NOT NULL
);
CREATE INDEX repos_by_name ON repos (owner, name);

CREATE TABLE workflow_runs (
    run_id        BIGINT PRIMARY KEY,
    repo_id       UUID NOT NULL,
    workflow_id   BIGINT NOT NULL,
    workflow_name TEXT,
    run_number    BIGINT,
    status        TEXT NOT NULL,
    status_rank   SMALLINT NOT NULL,
    conclusion    TEXT,
    event         TEXT,
    branch        TEXT,
    commit_sha    TEXT,
    attempt       INTEGER NOT NULL,
    url           TEXT,
    started_at    TIMESTAMPTZ,
    updated_at    TIMESTAMPTZ NOT NULL,
    created_at    TIMESTAMPTZ NOT NULL
);
CREATE INDEX workflow_runs_by_repo ON workflow_runs (repo_id, run_id);
CREATE INDEX workflow_runs_by_day ON workflow_runs (repo_id, created_at);

CREATE TABLE workflow_jobs (
    job_id        BIGINT PRIMARY KEY,
    run_id        BIGINT NOT NULL,
    repo_id       UUID NOT NULL,
    attempt       INTEGER NOT NULL,
    name          TEXT NOT NULL,
    workflow_name TEXT,
    status        TEXT NOT NULL,
    status_rank   SMALLINT NOT NULL,
    conclusion    TEXT,
    url           TEXT,
    steps         TEXT NOT NULL,
    started_at    TIMESTAMPTZ,
    completed_at  TIMESTAMPTZ
);
CREATE INDEX workflow_jobs_by_run ON workflow_jobs (run_id);

CREATE TABLE webhook_deliveries (
    id           UUID PRIMARY KEY,
    delivery_id  TEXT COLLATE "C" NOT NULL UNIQUE,
    event        TEXT NOT NULL,
    action       TEXT,
    repo         TEXT,
    payload      BYTEA,                      -- zstd of the JSON text, dropped after 30 days
    status       TEXT NOT NULL CHECK (status IN ('processed', 'ignored', 'failed')),
    error        TEXT,
    received_at  TIMESTAMPTZ NOT NULL,
    processed_at TIMESTAMPTZ
);
ALTER TABLE webhook_deliveries ALTER COLUMN payload SET STORAGE EXTERNAL; -- compressed already
