-- What stands behind `build:{id}` channels. The events themselves are in the log.
CREATE TABLE builds (
    id            UUID PRIMARY KEY,
    owner         TEXT COLLATE "C" NOT NULL,
    org           TEXT COLLATE "C",
    created_at    TIMESTAMPTZ NOT NULL,
    last_event_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX builds_by_age ON builds (last_event_at);
