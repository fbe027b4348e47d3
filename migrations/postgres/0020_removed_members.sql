-- Users who were removed from an account and have been made members of none since: a login of
-- theirs makes no account. Those of before are known by the audit log.

CREATE TABLE removed_members (
    user_id     UUID PRIMARY KEY,
    removed_at  TIMESTAMPTZ NOT NULL
);

INSERT INTO removed_members (user_id, removed_at)
SELECT a.subject::UUID, max(a.created_at) FROM audit_log a
 WHERE a.action = 'member.remove'
   AND NOT EXISTS (SELECT FROM members m WHERE m.user_id::TEXT = a.subject)
 GROUP BY a.subject;

CREATE OR REPLACE FUNCTION tollgate_tables() RETURNS SETOF REGCLASS LANGUAGE sql STABLE AS $$
    SELECT found FROM unnest(ARRAY[
        '_sqlx_migrations', 'accounts', 'api_keys', 'archived_spending', 'archives', 'audit_log',
        'billing_events', 'billing_sinks', 'export_lanes', 'exports', 'holds',
        'idempotency_keys', 'key_budgets', 'ledger_entries', 'lookups', 'members',
        'payment_events', 'payment_reversals', 'payments', 'price_changes',
        'price_tables', 'prices', 'rate_windows', 'removed_members', 'subscriptions',
        'usage_corrections', 'usage_records'
    ]) AS name, to_regclass(name) AS found WHERE found IS NOT NULL
    UNION ALL
    SELECT inhrelid::REGCLASS FROM pg_inherits WHERE inhparent = to_regclass('usage_records')
$$;

SELECT tollgate_hide('removed_members'::REGCLASS);
