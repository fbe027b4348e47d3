-- Credits and corrections by hand, which are few, found without reading every charge.

CREATE INDEX ledger_entries_without_request ON ledger_entries (account_id, created_at)
    WHERE request_id IS NULL;
