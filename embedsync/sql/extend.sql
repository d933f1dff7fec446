-- EXTEND: the lease of work that takes long.
UPDATE embedsync_ledger
SET run_at = clock_timestamp() + %(lease)s * interval '1 second'
-- As in done.sql.
WHERE ctid = ANY(ARRAY(SELECT unnest(%(ctids)s::tid[])))
