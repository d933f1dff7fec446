-- COMPLETE, at its end: dirty rows are due again at once.
UPDATE embedsync_ledger
SET token = NULL, dirty = false, run_at = clock_timestamp(), attempts = 0, last_error = ''
-- As in done.sql.
WHERE ctid = ANY(ARRAY(SELECT unnest(%(ctids)s::tid[])))
