-- What Stripe says: payments, what is taken back of them, and subscriptions.

-- Each event once. One that was refused may come again, when its cause is gone.
CREATE TABLE payment_events (
    id           TEXT PRIMARY KEY,      -- evt_…
    kind         TEXT NOT NULL,         -- its type at Stripe
    object       TEXT NOT NULL,         -- what it is about: cs_…, re_…, dp_…, sub_…
    state        TEXT NOT NULL CONSTRAINT payment_events_state CHECK (state IN ('handled', 'refused')),
    reason       TEXT,                  -- why it was refused
    account_id   UUID,                  -- whose it is, where it changed something
    created_at   TIMESTAMPTZ NOT NULL,  -- by Stripe's clock
    handled_at   TIMESTAMPTZ NOT NULL
);
CREATE INDEX payment_events_age ON payment_events (handled_at) WHERE state = 'handled';

-- A top-up that was paid and credited.
CREATE TABLE payments (
    id              TEXT PRIMARY KEY,   -- of its checkout session: cs_…
    account_id      UUID NOT NULL REFERENCES accounts (id),
    payment_intent  TEXT NOT NULL,      -- pi_…: what refunds and disputes name
    paid_cents      BIGINT NOT NULL CONSTRAINT payments_paid_positive CHECK (paid_cents > 0),
    credited_nusd   BIGINT NOT NULL,
    kept_nusd       BIGINT NOT NULL,    -- credited less what was taken back: sum of its ledger entries
    created_at      TIMESTAMPTZ NOT NULL
);
CREATE INDEX payments_intent ON payments (payment_intent);
CREATE INDEX payments_account ON payments (account_id);

-- What is taken back of a payment, as it stands by its newest event. May come before the payment.
CREATE TABLE payment_reversals (
    id              TEXT PRIMARY KEY,   -- re_…, dp_…, or ch_… for the sum that a charge names
    payment_intent  TEXT NOT NULL,
    kind            TEXT NOT NULL CONSTRAINT payment_reversals_kind CHECK (kind IN ('refund', 'dispute', 'charge')),
    amount_cents    BIGINT NOT NULL CONSTRAINT payment_reversals_amount CHECK (amount_cents >= 0),
    state           TEXT NOT NULL CONSTRAINT payment_reversals_state CHECK (state IN ('taken', 'returned')),
    as_of           TIMESTAMPTZ NOT NULL   -- of that event
);
CREATE INDEX payment_reversals_intent ON payment_reversals (payment_intent);

-- Subscriptions that say something of an account, as they stand by their newest event.
CREATE TABLE subscriptions (
    id          TEXT PRIMARY KEY,       -- sub_…
    account_id  UUID NOT NULL REFERENCES accounts (id),
    status      TEXT NOT NULL,          -- Stripe's word
    plan        TEXT,                   -- of the operator's table; NULL: it names none
    as_of       TIMESTAMPTZ NOT NULL
);
CREATE INDEX subscriptions_account ON subscriptions (account_id);

-- Events name customers, and accounts without one are looked for.
CREATE INDEX accounts_stripe_customer ON accounts (stripe_customer_id) WHERE stripe_customer_id IS NOT NULL;
CREATE INDEX accounts_no_customer ON accounts (id) WHERE stripe_customer_id IS NULL;

CREATE OR REPLACE FUNCTION tollgate_tables() RETURNS SETOF REGCLASS LANGUAGE sql STABLE AS $$
    SELECT found FROM unnest(ARRAY[
        '_sqlx_migrations', 'accounts', 'api_keys', 'audit_log', 'billing_events', 'billing_sinks',
        'export_lanes', 'exports', 'holds',
        'idempotency_keys', 'key_budgets', 'ledger_entries', 'lookups', 'members',
        'payment_events', 'payment_reversals', 'payments', 'price_changes',
        'price_tables', 'prices', 'rate_windows', 'subscriptions', 'usage_corrections',
        'usage_records'
    ]) AS name, to_regclass(name) AS found WHERE found IS NOT NULL
    UNION ALL
    SELECT inhrelid::REGCLASS FROM pg_inherits WHERE inhparent = to_regclass('usage_records')
$$;

SELECT tollgate_hide(name::REGCLASS) FROM unnest(ARRAY[
    'payment_events', 'payments', 'payment_reversals', 'subscriptions']) AS name;
