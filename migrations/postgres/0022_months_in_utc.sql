-- The months of tollgate_ensure_partitions are those of UTC. It adds months to times, which goes by
-- the time zone of the session; a pooler may not pass on ours, and a database may have another.
ALTER FUNCTION tollgate_ensure_partitions(TIMESTAMPTZ) SET timezone = 'UTC';
