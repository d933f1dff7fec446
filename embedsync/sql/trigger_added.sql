-- What changed while there was no trigger, or another one, is found by comparing all rows. Where
-- there are none, all is well from the start: no row can come while this transaction holds the lock.
INSERT INTO {schema}.embedsync_sidecar (key, backfilled_at)
SELECT {key}, CASE WHEN NOT EXISTS (SELECT FROM {source}) AND NOT EXISTS (SELECT FROM {sidecar})
    THEN clock_timestamp() END
ON CONFLICT (key) DO UPDATE SET backfill_after = NULL, backfilled_at = excluded.backfilled_at;
