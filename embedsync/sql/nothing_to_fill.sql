-- Where there are no rows all is well from the start: none can come while this transaction holds the
-- lock that CREATE TRIGGER took.
UPDATE {schema}.embedsync_sidecar SET backfilled_at = clock_timestamp()
WHERE key = {key}
    AND NOT EXISTS (SELECT FROM {source}) AND NOT EXISTS (SELECT FROM {sidecar});
