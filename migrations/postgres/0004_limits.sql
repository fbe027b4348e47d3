-- Limits of rate: what accounts and keys have sent within the last minute.

-- One row for each account or key that has such limits and has been used. Small and hot: it is
-- written with every request of its subject, so half of each page is left for that.
CREATE TABLE rate_windows (
    subject        UUID PRIMARY KEY,        -- the id of an account or of a key
    open_requests  BIGINT NOT NULL CONSTRAINT rate_windows_open_not_negative CHECK (open_requests >= 0),
    seen_at        TIMESTAMPTZ NOT NULL,    -- the row's clock, which never goes back
    slots          TEXT NOT NULL            -- «microseconds since the slot before, requests, tokens;» for each
) WITH (fillfactor = 50);
-- At most 121 slots: it stays in the page.
ALTER TABLE rate_windows ALTER COLUMN slots SET STORAGE MAIN;

-- What a hold has taken from the windows, so that it can be put right when it ends.
ALTER TABLE holds ADD COLUMN counted_account BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE holds ADD COLUMN counted_key BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE holds ADD COLUMN counted_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE holds ADD COLUMN counted_at TIMESTAMPTZ;     -- NULL: nothing was taken

ALTER TABLE rate_windows ENABLE ROW LEVEL SECURITY;
