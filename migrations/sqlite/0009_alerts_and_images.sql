-- The webhook is told when a balance runs low and when a budget is used up: events of two more
-- kinds, which carry the figures of their moment. SQLite cannot change a CHECK, so the table is
-- made anew: https://www.sqlite.org/lang_altertable.html#otheralter

CREATE TABLE billing_events_anew (
    id               TEXT PRIMARY KEY,      -- request id and what it is for: the same event can be written once only
    sink             TEXT NOT NULL,
    kind             TEXT NOT NULL DEFAULT 'usage' CONSTRAINT billing_events_kind
        CHECK (kind IN ('usage', 'correction', 'notice', 'balance_low', 'budget_threshold')),
    request_id       TEXT NOT NULL,
    account_id       TEXT NOT NULL,
    state            TEXT NOT NULL CONSTRAINT billing_events_state CHECK (state IN ('waiting', 'exported', 'parked')),
    attempts         INTEGER NOT NULL,
    next_attempt_at  TEXT NOT NULL,
    leased_until     TEXT,
    reason           TEXT,
    export_group     TEXT,                  -- NULL: not merged (yet)
    detail           TEXT,                  -- JSON; NULL: it is a copy of rows
    created_at       TEXT NOT NULL
) STRICT;
INSERT INTO billing_events_anew (id, sink, kind, request_id, account_id, state, attempts,
                                 next_attempt_at, leased_until, reason, export_group, created_at)
    SELECT id, sink, kind, request_id, account_id, state, attempts,
           next_attempt_at, leased_until, reason, export_group, created_at FROM billing_events;
DROP TABLE billing_events;
ALTER TABLE billing_events_anew RENAME TO billing_events;

CREATE INDEX billing_events_waiting ON billing_events (sink, next_attempt_at) WHERE state = 'waiting' AND export_group IS NULL;
CREATE INDEX billing_events_parked ON billing_events (sink, reason, account_id) WHERE state = 'parked';
CREATE INDEX billing_events_grouped ON billing_events (export_group) WHERE export_group IS NOT NULL;

-- Pictures in the prompt, where the price has a fee for each. NULL: none that cost anything.
ALTER TABLE holds ADD COLUMN input_images INTEGER;
ALTER TABLE usage_records ADD COLUMN input_images INTEGER;
