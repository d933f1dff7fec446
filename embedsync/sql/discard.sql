-- DISCARD: rows leave the ledger, whatever they wait for; but never one in a worker's hands.
WITH free AS MATERIALIZED (
    SELECT l.sidecar, l.source_pk
    FROM unnest(%(keys)s::text[], %(pks)s::text[]) AS given(sidecar, source_pk)
    JOIN embedsync_ledger l USING (sidecar, source_pk)
    WHERE l.token IS NULL OR l.run_at <= clock_timestamp()
    -- In the order in which every worker locks, so that two of them cannot deadlock.
    ORDER BY l.sidecar COLLATE "C", l.source_pk COLLATE "C"
    FOR UPDATE OF l
)
-- By key and not by ctid: a row that somebody has updated while this waited for its lock has another.
DELETE FROM embedsync_ledger l USING free
WHERE l.sidecar = free.sidecar AND l.source_pk = free.source_pk
    AND (l.token IS NULL OR l.run_at <= clock_timestamp())
