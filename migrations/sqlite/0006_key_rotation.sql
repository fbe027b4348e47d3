-- A key's secret can be changed while the old one still works, and prices can be set while running.

ALTER TABLE api_keys ADD COLUMN previous_secret_hash TEXT;  -- of the secret before the last change
ALTER TABLE api_keys ADD COLUMN previous_expires_at TEXT;  -- until when that one works
CREATE UNIQUE INDEX api_keys_previous ON api_keys (previous_secret_hash)
    WHERE previous_secret_hash IS NOT NULL;

-- The operator's table of prices, markups and plans, where it is not a file. The highest version counts.
CREATE TABLE price_tables (
    version     INTEGER PRIMARY KEY,   -- 1, 2, 3 …: clocks of replicas differ
    text        TEXT NOT NULL,      -- TOML
    actor       TEXT NOT NULL,
    created_at  TEXT NOT NULL
) STRICT;
