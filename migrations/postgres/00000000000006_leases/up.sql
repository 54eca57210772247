-- Which node does the work that one of them does for all. At `expires_at` it is anybody's again.
CREATE TABLE leases (
    name       TEXT COLLATE "C" PRIMARY KEY,
    holder     UUID NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);
