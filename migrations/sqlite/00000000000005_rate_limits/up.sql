-- How much of each rate is used up, so that a restart does not give it back: at `free_at` all of
-- it is earned again, and the row means nothing any more.
CREATE TABLE rate_limits (
    name    TEXT NOT NULL,
    key     TEXT NOT NULL,
    free_at INTEGER NOT NULL,
    PRIMARY KEY (name, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX rate_limits_by_end ON rate_limits (free_at);
