-- What stands behind `build:{id}` channels. The events themselves are in the log.
CREATE TABLE builds (
    id            BLOB PRIMARY KEY NOT NULL,
    owner         TEXT NOT NULL,
    org           TEXT,
    created_at    INTEGER NOT NULL,
    last_event_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX builds_by_age ON builds (last_event_at);
