-- How much of each rate is used up, so that a restart does not give it back: at `free_at` all of
-- it is earned again, and the row means nothing any more.
CREATE TABLE rate_limits (
    name    TEXT COLLATE "C" NOT NULL,
    key     TEXT COLLATE "C" NOT NULL,
    free_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (name, key)
);
CREATE INDEX rate_limits_by_end ON rate_limits (free_at);
