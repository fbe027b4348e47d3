-- Several upstreams: which were called for a request, and prices made from the costs of each.

-- Calls of upstreams, where there was more than one answer to it: a JSON array as text. It is under
-- the hash of its usage record, and NULL in those that have none. Upstreams are the operator's: the
-- roles of the data API are not given these columns.
ALTER TABLE holds ADD COLUMN tried TEXT;
ALTER TABLE usage_records ADD COLUMN tried TEXT;

-- A model that two upstreams serve has two prices at the same time. Empty: whoever answers.
ALTER TABLE price_changes ADD COLUMN upstream TEXT NOT NULL DEFAULT '';
ALTER TABLE price_changes ALTER COLUMN upstream DROP DEFAULT;
ALTER TABLE price_changes DROP CONSTRAINT price_changes_pkey;
ALTER TABLE price_changes ADD PRIMARY KEY (model, plan, upstream, effective_at);
