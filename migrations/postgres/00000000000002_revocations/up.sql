-- Tokens (by their jti) and users that are refused although what they show is signed.
CREATE TABLE revocations (
    kind       TEXT COLLATE "C" NOT NULL CHECK (kind IN ('token', 'user')),
    subject    TEXT COLLATE "C" NOT NULL,
    expires_at TIMESTAMPTZ,                  -- NULL: until it is taken back
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (kind, subject)
);
