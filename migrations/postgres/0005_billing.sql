-- Billing events on their way: what kind they are, and the exports that they are merged into where
-- a sink takes one call at a time for a customer.

ALTER TABLE billing_events ADD COLUMN kind TEXT NOT NULL DEFAULT 'usage' CONSTRAINT billing_events_kind CHECK (kind IN ('usage', 'correction', 'notice'));
ALTER TABLE billing_events ADD COLUMN export_group TEXT;       -- NULL: not merged (yet)

-- What is due, and only that: a claimed event is due again when its lease ends.
DROP INDEX billing_events_waiting;
CREATE INDEX billing_events_waiting ON billing_events (sink, next_attempt_at) WHERE state = 'waiting' AND export_group IS NULL;
CREATE INDEX billing_events_parked ON billing_events (sink, reason, account_id) WHERE state = 'parked';
CREATE INDEX billing_events_grouped ON billing_events (export_group) WHERE export_group IS NOT NULL;

-- Since when a sink has been configured: earlier usage has no events, and needs none.
CREATE TABLE billing_sinks (
    name    TEXT NOT NULL,
    since   TIMESTAMPTZ NOT NULL,
    until   TIMESTAMPTZ,                    -- NULL: it still is
    PRIMARY KEY (name, since)
);
CREATE UNIQUE INDEX billing_sinks_open ON billing_sinks (name) WHERE until IS NULL;

-- Merged events: what is told to a sink, written down before it is.
CREATE TABLE exports (
    id               TEXT PRIMARY KEY,      -- the identifier at the sink: follows from its members
    sink             TEXT NOT NULL,
    event_group      TEXT NOT NULL,         -- of its members; one export for each meter
    customer         TEXT NOT NULL,
    meter            TEXT NOT NULL,         -- its event name
    seq              BIGINT NOT NULL,       -- 1, 2, 3 … of a customer
    used_at          TIMESTAMPTZ NOT NULL,  -- newest member; all are of one minute
    members          BIGINT NOT NULL,
    amount           BIGINT NOT NULL,       -- sum of the members: nano-USD, or tokens
    unit             BIGINT NOT NULL,       -- of amount in one of value
    value            BIGINT NOT NULL,       -- what is sent; the rest is in the lane
    state            TEXT NOT NULL CONSTRAINT exports_state CHECK (state IN ('waiting', 'exported', 'parked', 'void')),
    attempts         BIGINT NOT NULL,
    refusals         BIGINT NOT NULL,       -- answers that said: not now
    first_sent_at    TIMESTAMPTZ,           -- from then on it may have arrived
    next_attempt_at  TIMESTAMPTZ NOT NULL,
    reason           TEXT,
    created_at       TIMESTAMPTZ NOT NULL,
    CONSTRAINT exports_seq_unique UNIQUE (sink, customer, seq)
);
CREATE INDEX exports_waiting ON exports (sink, customer, seq) WHERE state = 'waiting';
CREATE INDEX exports_group ON exports (event_group);
CREATE INDEX exports_time ON exports (customer, meter, used_at);

-- A customer's exports go out one after the other, by whoever has the lease.
CREATE TABLE export_lanes (
    sink             TEXT NOT NULL,
    customer         TEXT NOT NULL,
    carried_nusd     BIGINT NOT NULL,       -- charged and not yet sent: less than a unit
    seq              BIGINT NOT NULL,
    next_attempt_at  TIMESTAMPTZ,           -- NULL: nothing waits
    leased_until     TIMESTAMPTZ,
    leased_by        TEXT,
    PRIMARY KEY (sink, customer)
);
CREATE INDEX export_lanes_due ON export_lanes (sink, next_attempt_at) WHERE next_attempt_at IS NOT NULL;

ALTER TABLE billing_sinks ENABLE ROW LEVEL SECURITY;
ALTER TABLE exports ENABLE ROW LEVEL SECURITY;
ALTER TABLE export_lanes ENABLE ROW LEVEL SECURITY;
