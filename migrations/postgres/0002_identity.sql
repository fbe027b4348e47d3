-- Who acts for an account, what keys may do beside asking models, and who changed what.

ALTER TABLE accounts ADD COLUMN requests_per_minute BIGINT;   -- NULL: the plan's
ALTER TABLE accounts ADD COLUMN tokens_per_minute BIGINT;
ALTER TABLE accounts ADD COLUMN concurrent_requests BIGINT;

ALTER TABLE api_keys ADD COLUMN role TEXT NOT NULL DEFAULT 'user' CONSTRAINT api_keys_role CHECK (role IN ('user', 'admin', 'service'));
ALTER TABLE api_keys ADD COLUMN created_by TEXT NOT NULL DEFAULT 'operator';
ALTER TABLE api_keys ADD COLUMN requests_per_minute BIGINT;   -- NULL: none of its own
ALTER TABLE api_keys ADD COLUMN tokens_per_minute BIGINT;
ALTER TABLE api_keys ADD COLUMN concurrent_requests BIGINT;
ALTER TABLE api_keys ADD COLUMN last_used_at TIMESTAMPTZ;          -- to the minute

-- What an entry is for outside the books (a payment, a sign-up): it is entered once.
ALTER TABLE ledger_entries ADD COLUMN reference TEXT;
CREATE UNIQUE INDEX ledger_entries_one_reference ON ledger_entries (reference) WHERE reference IS NOT NULL;

-- A user of Supabase acts for one account; several may share it. No foreign key to auth.users: a
-- plain PostgreSQL has no such table, and a user's end must not touch the books.
CREATE TABLE members (
    user_id     UUID PRIMARY KEY,
    account_id  UUID NOT NULL REFERENCES accounts (id),
    created_at  TIMESTAMPTZ NOT NULL
);
CREATE INDEX members_account ON members (account_id);

-- Append-only: written in the transaction of the change it tells of.
CREATE TABLE audit_log (
    id          UUID PRIMARY KEY,
    actor       TEXT NOT NULL,      -- operator, key:<id>, user:<id>
    action      TEXT NOT NULL,
    subject     TEXT NOT NULL,
    account_id  UUID,
    before      TEXT,               -- JSON, without secrets
    after       TEXT,
    created_at  TIMESTAMPTZ NOT NULL
);
CREATE INDEX audit_log_account ON audit_log (account_id, id);

ALTER TABLE members ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_log ENABLE ROW LEVEL SECURITY;
