-- A key's secret can be changed while the old one still works, and prices can be set while running.

ALTER TABLE api_keys ADD COLUMN previous_hash TEXT;             -- of the secret before the last change
ALTER TABLE api_keys ADD COLUMN previous_expires_at TIMESTAMPTZ;  -- until when that one works
CREATE UNIQUE INDEX api_keys_previous ON api_keys (previous_hash) WHERE previous_hash IS NOT NULL;

-- The operator's table of prices, markups and plans, where it is not a file. The newest counts.
CREATE TABLE price_tables (
    id          UUID PRIMARY KEY,
    text        TEXT NOT NULL,      -- TOML
    actor       TEXT NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL
);

ALTER TABLE price_tables ENABLE ROW LEVEL SECURITY;
