-- Months whose usage records have been written to files and removed. The ledger keeps its entries;
-- what they have to sum to for such a month stands here.

CREATE TABLE archives (
    month            TEXT PRIMARY KEY,      -- 2026-08
    records          INTEGER NOT NULL,
    charge_nusd      INTEGER NOT NULL,      -- sum of the usage records
    corrections      INTEGER NOT NULL,
    difference_nusd  INTEGER NOT NULL,      -- sum of the corrections
    manifest_hash    TEXT NOT NULL,         -- SHA-256 of manifest.json, which has those of the files
    state            TEXT NOT NULL CONSTRAINT archives_state CHECK (state IN ('removing', 'removed')),
    archived_at      TEXT NOT NULL
) STRICT;

-- What keys had spent in it: a key's budget of all time goes on.
CREATE TABLE archived_spending (
    month            TEXT NOT NULL REFERENCES archives (month),
    api_key_id       TEXT NOT NULL,
    spent_nusd       INTEGER NOT NULL,      -- net of corrections
    corrections      INTEGER NOT NULL,
    PRIMARY KEY (month, api_key_id)
) STRICT;
