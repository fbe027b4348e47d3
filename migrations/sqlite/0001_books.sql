-- The books: who pays, what is set aside, what was used, what it cost.
-- Amounts are nano-USD in INTEGER, times are RFC 3339 UTC text of fixed width (so that they compare
-- as text), ids are UUIDv7 text. The PostgreSQL migration of the same name explains the columns.

CREATE TABLE accounts (
    id                   TEXT PRIMARY KEY,
    name                 TEXT NOT NULL,
    kind                 TEXT NOT NULL CONSTRAINT accounts_kind CHECK (kind IN ('prepaid', 'postpaid')),
    status               TEXT NOT NULL CONSTRAINT accounts_status CHECK (status IN ('active', 'suspended')),
    plan                 TEXT,              -- of the operator's table; NULL: none
    limit_nusd           INTEGER,            -- postpaid: most to spend in a calendar month, NULL: none
    balance_nusd         INTEGER NOT NULL,   -- credits - charges, of all time
    held_nusd            INTEGER NOT NULL CONSTRAINT accounts_held_not_negative CHECK (held_nusd >= 0),
    period_start         TEXT NOT NULL,  -- the month that period_charged_nusd counts
    period_charged_nusd  INTEGER NOT NULL,
    ledger_seq           INTEGER NOT NULL,   -- number of the newest ledger entry
    ledger_hash          TEXT NOT NULL,     -- its hash: the head of the account's chain
    stripe_customer_id   TEXT,
    created_at           TEXT NOT NULL,
    CONSTRAINT accounts_name_unique UNIQUE (name)
) STRICT;

CREATE TABLE api_keys (
    id            TEXT PRIMARY KEY,
    account_id    TEXT NOT NULL REFERENCES accounts (id),
    name          TEXT NOT NULL,
    secret_hash   TEXT NOT NULL CONSTRAINT api_keys_secret_unique UNIQUE,  -- SHA-256 in hex; the key itself is nowhere
    hint          TEXT NOT NULL,            -- first and last characters, to tell keys apart
    models        TEXT,                     -- patterns, comma separated; NULL: every model
    created_at    TEXT NOT NULL,
    expires_at    TEXT,
    revoked_at    TEXT
) STRICT;
CREATE INDEX api_keys_account ON api_keys (account_id);

-- What a key has spent and may spend. Apart from api_keys, because every request changes it.
CREATE TABLE key_budgets (
    api_key_id        TEXT PRIMARY KEY REFERENCES api_keys (id),
    day_limit_nusd    INTEGER,                -- NULL: no limit
    week_limit_nusd   INTEGER,
    month_limit_nusd  INTEGER,
    total_limit_nusd  INTEGER,
    held_nusd         INTEGER NOT NULL CONSTRAINT key_budgets_held_not_negative CHECK (held_nusd >= 0),
    day_start         TEXT NOT NULL,
    day_nusd          INTEGER NOT NULL,
    week_start        TEXT NOT NULL,
    week_nusd         INTEGER NOT NULL,
    month_start       TEXT NOT NULL,
    month_nusd        INTEGER NOT NULL,
    total_nusd        INTEGER NOT NULL
) STRICT;

-- One row per version of a model's price, named by the hash of its terms: never updated.
CREATE TABLE prices (
    id            TEXT PRIMARY KEY,
    model         TEXT NOT NULL,
    terms         TEXT NOT NULL             -- JSON, in the form that the hash was taken of
) STRICT;

-- Since when which version counts, for a model and a plan ('' is every other account).
CREATE TABLE price_changes (
    model         TEXT NOT NULL,
    plan          TEXT NOT NULL,
    effective_at  TEXT NOT NULL,
    price_id      TEXT NOT NULL REFERENCES prices (id),
    PRIMARY KEY (model, plan, effective_at)
) STRICT;

-- Money set aside before an upstream is called. Small and hot: a closed hold is gone, and the usage
-- record of the same id says how it ended.
CREATE TABLE holds (
    request_id              TEXT PRIMARY KEY,
    account_id              TEXT NOT NULL REFERENCES accounts (id),
    api_key_id              TEXT,
    amount_nusd             INTEGER NOT NULL CONSTRAINT holds_amount_not_negative CHECK (amount_nusd >= 0),
    owner                   TEXT NOT NULL,  -- the running Tollgate that answers for it
    lease_expires_at        TEXT NOT NULL,
    upstream                TEXT NOT NULL,
    model                   TEXT NOT NULL,
    price_id                TEXT NOT NULL,
    prompt_tokens_estimate  INTEGER NOT NULL,
    completion_tokens_seen  INTEGER NOT NULL,
    generation_id           TEXT,
    idempotency_key         TEXT,
    streamed                INTEGER NOT NULL,
    placed_at               TEXT NOT NULL
) STRICT;
CREATE INDEX holds_account ON holds (account_id);
CREATE INDEX holds_lease ON holds (lease_expires_at);

-- What a request used and what it was charged. Append-only.
CREATE TABLE usage_records (
    id                         TEXT PRIMARY KEY,
    account_id                 TEXT NOT NULL,
    api_key_id                 TEXT,
    upstream                   TEXT NOT NULL,
    model                      TEXT NOT NULL,   -- as asked
    model_served               TEXT,            -- as the upstream says
    provider                   TEXT,
    generation_id              TEXT,
    streamed                   INTEGER NOT NULL,
    ending                     TEXT NOT NULL,
    finish_reason              TEXT,
    upstream_status            INTEGER,
    source                     TEXT NOT NULL,
    prompt_tokens              INTEGER NOT NULL,
    cached_tokens              INTEGER NOT NULL, -- within prompt_tokens
    cache_write_tokens         INTEGER NOT NULL, -- within prompt_tokens, short-lived
    cache_write_1h_tokens      INTEGER NOT NULL, -- within prompt_tokens, long-lived
    audio_prompt_tokens        INTEGER NOT NULL, -- within prompt_tokens
    completion_tokens          INTEGER NOT NULL,
    reasoning_tokens           INTEGER NOT NULL, -- within completion_tokens
    audio_completion_tokens    INTEGER NOT NULL, -- within completion_tokens
    image_completion_tokens    INTEGER NOT NULL, -- within completion_tokens
    web_searches               INTEGER NOT NULL,
    counted_prompt_tokens      INTEGER,          -- ours, kept beside the upstream's
    counted_completion_tokens  INTEGER,
    counter                    TEXT,
    counter_exact              INTEGER NOT NULL,
    upstream_cost_pusd         INTEGER,          -- pico-USD; NULL: unknown, 0: free
    charge_nusd                INTEGER NOT NULL,
    shortfall_nusd             INTEGER NOT NULL, -- what the account could not pay: the operator's loss
    hold_nusd                  INTEGER NOT NULL,
    price_id                   TEXT NOT NULL,
    attempts                   INTEGER NOT NULL,
    started_at                 TEXT NOT NULL,
    first_byte_at              TEXT,
    ended_at                   TEXT NOT NULL
) STRICT;
CREATE INDEX usage_records_account ON usage_records (account_id, id);

-- What was learnt of a request after its usage record was written. Append-only; the charge is put
-- right by a ledger entry of kind 'correction'.
CREATE TABLE usage_corrections (
    request_id          TEXT PRIMARY KEY,
    account_id          TEXT NOT NULL,
    generation_id       TEXT NOT NULL,
    prompt_tokens       INTEGER NOT NULL,
    completion_tokens   INTEGER NOT NULL,
    upstream_cost_pusd  INTEGER,
    charge_nusd         INTEGER NOT NULL,       -- what should have been charged
    difference_nusd     INTEGER NOT NULL,       -- what the ledger entry gives back (or takes, negative)
    created_at          TEXT NOT NULL
) STRICT;
CREATE INDEX usage_corrections_account ON usage_corrections (account_id, request_id);

-- Estimated requests whose upstream may still tell the truth: asked slowly, for a day.
CREATE TABLE lookups (
    request_id       TEXT PRIMARY KEY,
    account_id       TEXT NOT NULL,
    generation_id    TEXT NOT NULL,
    attempts         INTEGER NOT NULL,
    next_attempt_at  TEXT NOT NULL,
    give_up_at       TEXT NOT NULL
) STRICT;
CREATE INDEX lookups_due ON lookups (next_attempt_at);

-- A client's Idempotency-Key, while its request runs and for a day after.
CREATE TABLE idempotency_keys (
    id          TEXT PRIMARY KEY,           -- account id and key
    request_id  TEXT NOT NULL,
    expires_at  TEXT NOT NULL
) STRICT;
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

-- Append-only; each entry carries the hash of the one before it in its account.
CREATE TABLE ledger_entries (
    account_id    TEXT NOT NULL REFERENCES accounts (id),
    seq           INTEGER NOT NULL,
    kind          TEXT NOT NULL CONSTRAINT ledger_entries_kind CHECK (kind IN ('credit', 'charge', 'correction')),
    amount_nusd   INTEGER NOT NULL,          -- what it adds to the balance
    balance_nusd  INTEGER NOT NULL,          -- the balance after it
    request_id    TEXT,
    record_hash   TEXT,                     -- hash of the usage record that a charge is for
    reason        TEXT NOT NULL,
    created_at    TEXT NOT NULL,
    previous_hash TEXT NOT NULL,
    hash          TEXT NOT NULL,
    PRIMARY KEY (account_id, seq)
) STRICT;
CREATE UNIQUE INDEX ledger_entries_one_charge ON ledger_entries (request_id) WHERE kind = 'charge';

-- Outbox: a usage record's copy on its way to a sink.
CREATE TABLE billing_events (
    id               TEXT PRIMARY KEY,      -- request id and sink: the same event can be written once only
    sink             TEXT NOT NULL,
    request_id       TEXT NOT NULL,
    account_id       TEXT NOT NULL,
    state            TEXT NOT NULL CONSTRAINT billing_events_state CHECK (state IN ('waiting', 'exported', 'parked')),
    attempts         INTEGER NOT NULL,
    next_attempt_at  TEXT NOT NULL,
    leased_until     TEXT,
    reason           TEXT,
    created_at       TEXT NOT NULL
) STRICT;
CREATE INDEX billing_events_waiting ON billing_events (sink, next_attempt_at) WHERE state = 'waiting';
