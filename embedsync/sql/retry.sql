-- RETRY: parked rows are due again, as if they had never failed.
WITH parked AS MATERIALIZED (
    SELECT ctid FROM embedsync_ledger
    WHERE sidecar = ANY(%(keys)s) AND run_at IS NULL
        AND (%(pks)s::text[] IS NULL OR source_pk = ANY(%(pks)s::text[]))
        AND (%(error)s::text IS NULL OR strpos(lower(last_error), lower(%(error)s::text)) > 0)
    -- In the order in which every worker locks, so that two of them cannot deadlock.
    ORDER BY sidecar COLLATE "C", source_pk COLLATE "C"
    FOR UPDATE
)
UPDATE embedsync_ledger SET run_at = clock_timestamp(), queued_at = clock_timestamp(), attempts = 0
WHERE ctid = ANY(ARRAY(SELECT ctid FROM parked))
