-- Months whose usage records have been written to files and removed. The ledger keeps its entries;
-- what they have to sum to for such a month stands here.

CREATE TABLE archives (
    month            TEXT PRIMARY KEY,      -- 2026-08
    records          BIGINT NOT NULL,
    charge_nusd      BIGINT NOT NULL,       -- sum of the usage records
    corrections      BIGINT NOT NULL,
    difference_nusd  BIGINT NOT NULL,       -- sum of the corrections
    manifest_hash    TEXT NOT NULL,         -- SHA-256 of manifest.json, which has those of the files
    state            TEXT NOT NULL CONSTRAINT archives_state CHECK (state IN ('removing', 'removed')),
    archived_at      TIMESTAMPTZ NOT NULL
);

-- What keys had spent in it: a key's budget of all time goes on.
CREATE TABLE archived_spending (
    month            TEXT NOT NULL REFERENCES archives (month),
    api_key_id       UUID NOT NULL,
    spent_nusd       BIGINT NOT NULL,       -- net of corrections
    corrections      BIGINT NOT NULL,
    PRIMARY KEY (month, api_key_id)
);

CREATE OR REPLACE FUNCTION tollgate_tables() RETURNS SETOF REGCLASS LANGUAGE sql STABLE AS $$
    SELECT found FROM unnest(ARRAY[
        '_sqlx_migrations', 'accounts', 'api_keys', 'archived_spending', 'archives', 'audit_log',
        'billing_events', 'billing_sinks', 'export_lanes', 'exports', 'holds',
        'idempotency_keys', 'key_budgets', 'ledger_entries', 'lookups', 'members',
        'payment_events', 'payment_reversals', 'payments', 'price_changes',
        'price_tables', 'prices', 'rate_windows', 'subscriptions', 'usage_corrections',
        'usage_records'
    ]) AS name, to_regclass(name) AS found WHERE found IS NOT NULL
    UNION ALL
    SELECT inhrelid::REGCLASS FROM pg_inherits WHERE inhparent = to_regclass('usage_records')
$$;

SELECT tollgate_hide(name::REGCLASS) FROM unnest(ARRAY['archives', 'archived_spending']) AS name;
