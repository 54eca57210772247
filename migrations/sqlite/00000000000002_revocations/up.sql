-- Tokens (by their jti) and users that are refused although what they show is signed.
CREATE TABLE revocations (
    kind       TEXT NOT NULL CHECK (kind IN ('token', 'user')),
    subject    TEXT NOT NULL,
    expires_at INTEGER,                      -- NULL: until it is taken back
    created_at INTEGER NOT NULL,
    PRIMARY KEY (kind, subject)
) STRICT, WITHOUT ROWID;
