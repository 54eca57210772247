-- Which node does the work that one of them does for all. At `expires_at` it is anybody's again.
-- Here there is one node, which needs none.
CREATE TABLE leases (
    name       TEXT PRIMARY KEY,
    holder     BLOB NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
