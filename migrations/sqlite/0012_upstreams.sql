-- Several upstreams: which were called for a request, and prices made from the costs of each.

-- Calls of upstreams, where there was more than one answer to it: a JSON array as text. It is under
-- the hash of its usage record, and NULL in those that have none.
ALTER TABLE holds ADD COLUMN tried TEXT;
ALTER TABLE usage_records ADD COLUMN tried TEXT;

-- A model that two upstreams serve has two prices at the same time. Empty: whoever answers.
CREATE TABLE price_changes_by_upstream (
    model         TEXT NOT NULL,
    plan          TEXT NOT NULL,
    upstream      TEXT NOT NULL,
    effective_at  TEXT NOT NULL,
    price_id      TEXT NOT NULL REFERENCES prices (id),
    PRIMARY KEY (model, plan, upstream, effective_at)
) STRICT;
INSERT INTO price_changes_by_upstream
    SELECT model, plan, '', effective_at, price_id FROM price_changes;
DROP TABLE price_changes;
ALTER TABLE price_changes_by_upstream RENAME TO price_changes;
