-- The webhook is told when a balance runs low and when a budget is used up: events of two more
-- kinds, which carry the figures of their moment.

ALTER TABLE billing_events DROP CONSTRAINT billing_events_kind;
ALTER TABLE billing_events ADD CONSTRAINT billing_events_kind
    CHECK (kind IN ('usage', 'correction', 'notice', 'balance_low', 'budget_threshold'));
ALTER TABLE billing_events ADD COLUMN detail TEXT;             -- JSON; NULL: it is a copy of rows

-- Pictures in the prompt, where the price has a fee for each. NULL: none that cost anything.
ALTER TABLE holds ADD COLUMN input_images BIGINT;
ALTER TABLE usage_records ADD COLUMN input_images BIGINT;
