-- Links that sign a browser in, and the sessions that they made. Secrets are kept as their SHA-256.
CREATE TABLE sign_in_links (
    secret_hash BYTEA PRIMARY KEY,
    created_at  TIMESTAMPTZ NOT NULL,
    expires_at  TIMESTAMPTZ NOT NULL
);

CREATE TABLE sessions (
    secret_hash BYTEA PRIMARY KEY,
    subject     TEXT NOT NULL,
    scope       TEXT NOT NULL, -- words with spaces between, as in a token
    created_at  TIMESTAMPTZ NOT NULL,
    expires_at  TIMESTAMPTZ NOT NULL
);
