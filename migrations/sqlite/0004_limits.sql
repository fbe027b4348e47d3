-- Limits of rate: what accounts and keys have sent within the last minute.

-- One row for each account or key that has such limits and has been used. Small and hot.
CREATE TABLE rate_windows (
    subject        TEXT PRIMARY KEY,        -- the id of an account or of a key
    open_requests  INTEGER NOT NULL CONSTRAINT rate_windows_open_not_negative CHECK (open_requests >= 0),
    seen_at        TEXT NOT NULL,           -- the row's clock, which never goes back
    slots          TEXT NOT NULL            -- «microseconds since the slot before, requests, tokens;» for each
) STRICT;

-- What a hold has taken from the windows, so that it can be put right when it ends.
ALTER TABLE holds ADD COLUMN counted_account INTEGER NOT NULL DEFAULT 0;
ALTER TABLE holds ADD COLUMN counted_key INTEGER NOT NULL DEFAULT 0;
ALTER TABLE holds ADD COLUMN counted_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE holds ADD COLUMN counted_at TEXT;            -- NULL: nothing was taken
