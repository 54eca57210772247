-- Links that sign a browser in, and the sessions that they made. Secrets are kept as their SHA-256.
CREATE TABLE sign_in_links (
    secret_hash BLOB PRIMARY KEY NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    secret_hash BLOB PRIMARY KEY NOT NULL,
    subject     TEXT NOT NULL,
    scope       TEXT NOT NULL, -- words with spaces between, as in a token
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
