-- What a browser may read through Supabase's data API with the token of its user: the books of the
-- account that the user is a member of, and of those only the columns named here. Runs unchanged on
-- plain PostgreSQL, where the roles of that API do not exist: then nobody is given anything.
-- https://supabase.com/docs/guides/database/postgres/row-level-security

-- Who asks: `sub` of the claims that PostgREST sets for each transaction; NULL where there is none
-- or it is no user's id. Supabase's own auth.uid() is not on plain PostgreSQL.
-- https://docs.postgrest.org/en/stable/references/transactions.html#request-headers-cookies-and-jwt-claims
CREATE FUNCTION tollgate_current_user_id() RETURNS UUID
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = '' AS $$
    SELECT CASE WHEN claims.sub ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                THEN claims.sub::UUID END
    FROM (SELECT nullif(current_setting('request.jwt.claims', true), '')::JSONB ->> 'sub' AS sub)
         AS claims
$$;

-- A policy alone gives nobody anything: the grants below do. The owner of the tables, which is the
-- gateway, is bound by neither. Each sub-select is evaluated once for a query and not for each row,
-- and meets an index: members by user, the others by account.
CREATE POLICY members_own ON members FOR SELECT
    USING (user_id = (SELECT tollgate_current_user_id()));
CREATE POLICY accounts_own ON accounts FOR SELECT USING (id =
    (SELECT m.account_id FROM members m WHERE m.user_id = (SELECT tollgate_current_user_id())));
CREATE POLICY api_keys_own ON api_keys FOR SELECT USING (account_id =
    (SELECT m.account_id FROM members m WHERE m.user_id = (SELECT tollgate_current_user_id())));
CREATE POLICY usage_records_own ON usage_records FOR SELECT USING (account_id =
    (SELECT m.account_id FROM members m WHERE m.user_id = (SELECT tollgate_current_user_id())));
CREATE POLICY ledger_entries_own ON ledger_entries FOR SELECT USING (account_id =
    (SELECT m.account_id FROM members m WHERE m.user_id = (SELECT tollgate_current_user_id())));

-- Every table of Tollgate: a project's database may hold others, which are none of our business. A
-- later migration that makes a table replaces this function with a longer list.
CREATE FUNCTION tollgate_tables() RETURNS SETOF REGCLASS LANGUAGE sql STABLE AS $$
    SELECT found FROM unnest(ARRAY[
        '_sqlx_migrations', 'accounts', 'api_keys', 'audit_log', 'billing_events', 'billing_sinks',
        'export_lanes', 'exports', 'holds',
        'idempotency_keys', 'key_budgets', 'ledger_entries', 'lookups', 'members', 'price_changes',
        'price_tables', 'prices', 'rate_windows', 'usage_corrections', 'usage_records'
    ]) AS name, to_regclass(name) AS found WHERE found IS NOT NULL
    UNION ALL
    SELECT inhrelid::REGCLASS FROM pg_inherits WHERE inhparent = to_regclass('usage_records')
$$;

-- Takes from the roles of the data API what default privileges have given them: older Supabase
-- projects give them everything on each new table of the schema public. TRUNCATE among it, which
-- row level security does not stop.
CREATE FUNCTION tollgate_hide(hidden REGCLASS) RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    api_role TEXT;
BEGIN
    IF NOT (SELECT relrowsecurity FROM pg_class WHERE oid = hidden) THEN
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', hidden);
    END IF;
    FOR api_role IN SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, %I', hidden, api_role);
    END LOOP;
END $$;

-- Puts right what the roles of the data API may do. Called here and at each start, so that grants
-- appear when the roles do, and what a restored dump has given away is taken back.
CREATE FUNCTION tollgate_grant_supabase() RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    api_role  TEXT;
    callable  REGPROCEDURE;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname IN ('anon', 'authenticated')) THEN
        RETURN;
    END IF;
    -- Replicas start at the same time, and two of them may not change the same grants at once.
    PERFORM pg_advisory_xact_lock(7001001);
    PERFORM tollgate_hide(ours) FROM tollgate_tables() AS ours;
    -- The data API offers functions too.
    FOR api_role, callable IN
        SELECT r.rolname, p.oid::REGPROCEDURE
        FROM pg_roles r, pg_proc p
        WHERE r.rolname IN ('anon', 'authenticated') AND p.proname LIKE 'tollgate\_%'
          AND p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'accounts'::REGCLASS)
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, %I', callable, api_role);
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'authenticated') THEN
        RETURN;
    END IF;
    -- Left out is what is the operator's (costs, shortfalls, upstreams, providers, versions of
    -- prices), what is secret (hashes of keys), and what only the books need.
    GRANT EXECUTE ON FUNCTION tollgate_current_user_id() TO authenticated;
    GRANT SELECT (user_id, account_id) ON members TO authenticated;
    GRANT SELECT (id, name, kind, status, plan, limit_nusd, balance_nusd, held_nusd, period_start,
                  period_charged_nusd, created_at) ON accounts TO authenticated;
    GRANT SELECT (id, account_id, name, hint, models, role, created_at, expires_at, revoked_at,
                  last_used_at) ON api_keys TO authenticated;
    GRANT SELECT (id, account_id, api_key_id, model, streamed, ending, finish_reason, source,
                  prompt_tokens, cached_tokens, cache_write_tokens, cache_write_1h_tokens,
                  audio_prompt_tokens, completion_tokens, reasoning_tokens,
                  audio_completion_tokens, image_completion_tokens, web_searches, charge_nusd,
                  started_at, first_byte_at, ended_at) ON usage_records TO authenticated;
    GRANT SELECT (account_id, seq, kind, amount_nusd, balance_nusd, request_id, reason, created_at)
        ON ledger_entries TO authenticated;
END $$;

-- As before, but that a new partition is hidden from its first moment: queries go by way of
-- usage_records, whose policy counts for them.
CREATE OR REPLACE FUNCTION tollgate_ensure_partitions(at TIMESTAMPTZ) RETURNS VOID
LANGUAGE plpgsql AS $$
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
            PERFORM tollgate_hide(to_regclass(part));
        EXCEPTION WHEN check_violation THEN
            -- Rows of that month are in usage_records_other already (a clock was wrong): they
            -- stay there, and so do those that follow.
            RAISE WARNING 'no partition %: its rows are in usage_records_other', part;
        END;
    END LOOP;
END $$;

SELECT tollgate_grant_supabase();
