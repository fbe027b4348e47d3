-- The books: who pays, what is set aside, what was used, what it cost.
-- Amounts are nano-USD in BIGINT, times are UTC, ids are UUIDv7.
-- Runs unchanged on plain PostgreSQL and on Supabase: row level security is on everywhere, and a
-- table without a policy shows nothing to anybody but its owner.

CREATE TABLE accounts (
    id                   UUID PRIMARY KEY,
    name                 TEXT NOT NULL,
    kind                 TEXT NOT NULL CONSTRAINT accounts_kind CHECK (kind IN ('prepaid', 'postpaid')),
    status               TEXT NOT NULL CONSTRAINT accounts_status CHECK (status IN ('active', 'suspended')),
    plan                 TEXT,              -- of the operator's table; NULL: none
    limit_nusd           BIGINT,            -- postpaid: most to spend in a calendar month, NULL: none
    balance_nusd         BIGINT NOT NULL,   -- credits - charges, of all time
    held_nusd            BIGINT NOT NULL CONSTRAINT accounts_held_not_negative CHECK (held_nusd >= 0),
    period_start         TIMESTAMPTZ NOT NULL,  -- the month that period_charged_nusd counts
    period_charged_nusd  BIGINT NOT NULL,
    ledger_seq           BIGINT NOT NULL,   -- number of the newest ledger entry
    ledger_hash          TEXT NOT NULL,     -- its hash: the head of the account's chain
    stripe_customer_id   TEXT,
    created_at           TIMESTAMPTZ NOT NULL,
    CONSTRAINT accounts_name_unique UNIQUE (name)
);

CREATE TABLE api_keys (
    id            UUID PRIMARY KEY,
    account_id    UUID NOT NULL REFERENCES accounts (id),
    name          TEXT NOT NULL,
    secret_hash   TEXT NOT NULL CONSTRAINT api_keys_secret_unique UNIQUE,  -- SHA-256 in hex; the key itself is nowhere
    hint          TEXT NOT NULL,            -- first and last characters, to tell keys apart
    models        TEXT,                     -- patterns, comma separated; NULL: every model
    created_at    TIMESTAMPTZ NOT NULL,
    expires_at    TIMESTAMPTZ,
    revoked_at    TIMESTAMPTZ
);
CREATE INDEX api_keys_account ON api_keys (account_id);

-- What a key has spent and may spend. Apart from api_keys, because every request changes it.
CREATE TABLE key_budgets (
    api_key_id        UUID PRIMARY KEY REFERENCES api_keys (id),
    day_limit_nusd    BIGINT,                -- NULL: no limit
    week_limit_nusd   BIGINT,
    month_limit_nusd  BIGINT,
    total_limit_nusd  BIGINT,
    held_nusd         BIGINT NOT NULL CONSTRAINT key_budgets_held_not_negative CHECK (held_nusd >= 0),
    day_start         TIMESTAMPTZ NOT NULL,
    day_nusd          BIGINT NOT NULL,
    week_start        TIMESTAMPTZ NOT NULL,
    week_nusd         BIGINT NOT NULL,
    month_start       TIMESTAMPTZ NOT NULL,
    month_nusd        BIGINT NOT NULL,
    total_nusd        BIGINT NOT NULL
);

-- One row per version of a model's price, named by the hash of its terms: never updated.
CREATE TABLE prices (
    id            TEXT PRIMARY KEY,
    model         TEXT NOT NULL,
    terms         TEXT NOT NULL             -- JSON, in the form that the hash was taken of
);

-- Since when which version counts, for a model and a plan ('' is every other account).
CREATE TABLE price_changes (
    model         TEXT NOT NULL,
    plan          TEXT NOT NULL,
    effective_at  TIMESTAMPTZ NOT NULL,
    price_id      TEXT NOT NULL REFERENCES prices (id),
    PRIMARY KEY (model, plan, effective_at)
);

-- Money set aside before an upstream is called. Small and hot: a closed hold is gone, and the usage
-- record of the same id says how it ended.
CREATE TABLE holds (
    request_id              UUID PRIMARY KEY,
    account_id              UUID NOT NULL REFERENCES accounts (id),
    api_key_id              UUID,
    amount_nusd             BIGINT NOT NULL CONSTRAINT holds_amount_not_negative CHECK (amount_nusd >= 0),
    owner                   UUID NOT NULL,  -- the running Tollgate that answers for it
    lease_expires_at        TIMESTAMPTZ NOT NULL,
    upstream                TEXT NOT NULL,
    model                   TEXT NOT NULL,
    price_id                TEXT NOT NULL,
    prompt_tokens_estimate  BIGINT NOT NULL,
    completion_tokens_seen  BIGINT NOT NULL,
    generation_id           TEXT,
    idempotency_key         TEXT,
    streamed                BOOLEAN NOT NULL,
    placed_at               TIMESTAMPTZ NOT NULL
);
CREATE INDEX holds_account ON holds (account_id);
CREATE INDEX holds_lease ON holds (lease_expires_at);

-- What a request used and what it was charged. Append-only. Partitioned by month on the id, whose
-- first 48 bits are the time: the id alone stays unique.
CREATE TABLE usage_records (
    id                         UUID PRIMARY KEY,
    account_id                 UUID NOT NULL,
    api_key_id                 UUID,
    upstream                   TEXT NOT NULL,
    model                      TEXT NOT NULL,   -- as asked
    model_served               TEXT,            -- as the upstream says
    provider                   TEXT,
    generation_id              TEXT,
    streamed                   BOOLEAN NOT NULL,
    ending                     TEXT NOT NULL,
    finish_reason              TEXT,
    upstream_status            BIGINT,
    source                     TEXT NOT NULL,
    prompt_tokens              BIGINT NOT NULL,
    cached_tokens              BIGINT NOT NULL, -- within prompt_tokens
    cache_write_tokens         BIGINT NOT NULL, -- within prompt_tokens, short-lived
    cache_write_1h_tokens      BIGINT NOT NULL, -- within prompt_tokens, long-lived
    audio_prompt_tokens        BIGINT NOT NULL, -- within prompt_tokens
    completion_tokens          BIGINT NOT NULL,
    reasoning_tokens           BIGINT NOT NULL, -- within completion_tokens
    audio_completion_tokens    BIGINT NOT NULL, -- within completion_tokens
    image_completion_tokens    BIGINT NOT NULL, -- within completion_tokens
    web_searches               BIGINT NOT NULL,
    counted_prompt_tokens      BIGINT,          -- ours, kept beside the upstream's
    counted_completion_tokens  BIGINT,
    counter                    TEXT,
    counter_exact              BOOLEAN NOT NULL,
    upstream_cost_pusd         BIGINT,          -- pico-USD; NULL: unknown, 0: free
    charge_nusd                BIGINT NOT NULL,
    shortfall_nusd             BIGINT NOT NULL, -- what the account could not pay: the operator's loss
    hold_nusd                  BIGINT NOT NULL,
    price_id                   TEXT NOT NULL,
    attempts                   BIGINT NOT NULL,
    started_at                 TIMESTAMPTZ NOT NULL,
    first_byte_at              TIMESTAMPTZ,
    ended_at                   TIMESTAMPTZ NOT NULL
) PARTITION BY RANGE (id);
CREATE TABLE usage_records_other PARTITION OF usage_records DEFAULT;
CREATE INDEX usage_records_account ON usage_records (account_id, id);

-- What was learnt of a request after its usage record was written. Append-only; the charge is put
-- right by a ledger entry of kind 'correction'.
CREATE TABLE usage_corrections (
    request_id          UUID PRIMARY KEY,
    account_id          UUID NOT NULL,
    generation_id       TEXT NOT NULL,
    prompt_tokens       BIGINT NOT NULL,
    completion_tokens   BIGINT NOT NULL,
    upstream_cost_pusd  BIGINT,
    charge_nusd         BIGINT NOT NULL,       -- what should have been charged
    difference_nusd     BIGINT NOT NULL,       -- what the ledger entry gives back (or takes, negative)
    created_at          TIMESTAMPTZ NOT NULL
);
CREATE INDEX usage_corrections_account ON usage_corrections (account_id, request_id);

-- Estimated requests whose upstream may still tell the truth: asked slowly, for a day.
CREATE TABLE lookups (
    request_id       UUID PRIMARY KEY,
    account_id       UUID NOT NULL,
    generation_id    TEXT NOT NULL,
    attempts         BIGINT NOT NULL,
    next_attempt_at  TIMESTAMPTZ NOT NULL,
    give_up_at       TIMESTAMPTZ NOT NULL
);
CREATE INDEX lookups_due ON lookups (next_attempt_at);

-- A client's Idempotency-Key, while its request runs and for a day after.
CREATE TABLE idempotency_keys (
    id          TEXT PRIMARY KEY,           -- account id and key
    request_id  UUID NOT NULL,
    expires_at  TIMESTAMPTZ NOT NULL
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

-- Append-only; each entry carries the hash of the one before it in its account.
CREATE TABLE ledger_entries (
    account_id    UUID NOT NULL REFERENCES accounts (id),
    seq           BIGINT NOT NULL,
    kind          TEXT NOT NULL CONSTRAINT ledger_entries_kind CHECK (kind IN ('credit', 'charge', 'correction')),
    amount_nusd   BIGINT NOT NULL,          -- what it adds to the balance
    balance_nusd  BIGINT NOT NULL,          -- the balance after it
    request_id    UUID,
    record_hash   TEXT,                     -- hash of the usage record that a charge is for
    reason        TEXT NOT NULL,
    created_at    TIMESTAMPTZ NOT NULL,
    previous_hash TEXT NOT NULL,
    hash          TEXT NOT NULL,
    PRIMARY KEY (account_id, seq)
);
CREATE UNIQUE INDEX ledger_entries_one_charge ON ledger_entries (request_id) WHERE kind = 'charge';

-- Outbox: a usage record's copy on its way to a sink.
CREATE TABLE billing_events (
    id               TEXT PRIMARY KEY,      -- request id and sink: the same event can be written once only
    sink             TEXT NOT NULL,
    request_id       UUID NOT NULL,
    account_id       UUID NOT NULL,
    state            TEXT NOT NULL CONSTRAINT billing_events_state CHECK (state IN ('waiting', 'exported', 'parked')),
    attempts         BIGINT NOT NULL,
    next_attempt_at  TIMESTAMPTZ NOT NULL,
    leased_until     TIMESTAMPTZ,
    reason           TEXT,
    created_at       TIMESTAMPTZ NOT NULL
);
CREATE INDEX billing_events_waiting ON billing_events (sink, next_attempt_at) WHERE state = 'waiting';

-- Makes the partitions of this month and the next two, ahead of their first row. Called at start
-- and daily; a row outside them goes to usage_records_other.
CREATE FUNCTION tollgate_ensure_partitions(at TIMESTAMPTZ) RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    month TIMESTAMPTZ;
    part  TEXT;
BEGIN
    -- Replicas start at the same time.
    PERFORM pg_advisory_xact_lock(7001001);
    FOR ahead IN 0..2 LOOP
        month := date_trunc('month', at, 'UTC') + make_interval(months => ahead);
        part := 'usage_records_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
        CONTINUE WHEN to_regclass(part) IS NOT NULL;
        BEGIN
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF usage_records FOR VALUES FROM (%L) TO (%L)', part,
                tollgate_uuid7_floor(month),
                tollgate_uuid7_floor(month + INTERVAL '1 month'));
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', part);
        EXCEPTION WHEN check_violation THEN
            -- Rows of that month are in usage_records_other already (a clock was wrong): they
            -- stay there, and so do those that follow.
            RAISE WARNING 'no partition %: its rows are in usage_records_other', part;
        END;
    END LOOP;
END $$;

-- The smallest UUIDv7 of an instant.
CREATE FUNCTION tollgate_uuid7_floor(at TIMESTAMPTZ) RETURNS UUID LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::BIGINT), 12, '0') || '00000000000000000000')::UUID
$$;

ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE key_budgets ENABLE ROW LEVEL SECURITY;
ALTER TABLE price_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_corrections ENABLE ROW LEVEL SECURITY;
ALTER TABLE lookups ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE prices ENABLE ROW LEVEL SECURITY;
ALTER TABLE holds ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_records ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_records_other ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE billing_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE _sqlx_migrations ENABLE ROW LEVEL SECURITY;
