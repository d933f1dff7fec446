-- Before the triggers, and so before any lock on the source: a worker's fill locks in this order too.
-- What changed while there was no trigger, or another one, is found by comparing all rows.
INSERT INTO {schema}.embedsync_sidecar (key) VALUES ({key})
ON CONFLICT (key) DO UPDATE SET backfill_after = NULL, backfilled_at = NULL;
CALL {schema}.embedsync_lock(ARRAY[{tables}], 'SHARE ROW EXCLUSIVE');
