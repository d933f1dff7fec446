-- SWEEP: those of the rows that workers have still to see to, or have parked.
-- The inbox has no index that serves this: it is read once, and only where a row differs.
WITH events AS MATERIALIZED (
    SELECT DISTINCT source_pk
    FROM embedsync_inbox
    WHERE sidecar = %(key)s AND kind = 'row' AND source_pk = ANY(%(pks)s::text[])
), whole AS MATERIALIZED (
    -- Which rows it is about is not known yet: a truncation, say, or a trigger that has failed.
    SELECT EXISTS (SELECT FROM embedsync_inbox WHERE sidecar = %(key)s AND kind <> 'row')
        OR (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM embedsync_missed)
            IS DISTINCT FROM (SELECT missed FROM embedsync_sidecar WHERE key = %(key)s) AS owed
)
SELECT u.source_pk,
    CASE WHEN w.owed OR e.source_pk IS NOT NULL OR l.run_at IS NOT NULL THEN 'waiting'
        ELSE 'parked' END
FROM unnest(%(pks)s::text[]) AS u(source_pk)
CROSS JOIN whole w
LEFT JOIN events e ON e.source_pk = u.source_pk
LEFT JOIN LATERAL (
    SELECT source_pk, run_at FROM embedsync_ledger
    WHERE sidecar = %(key)s AND source_pk = u.source_pk
    OFFSET 0
) l ON true
WHERE w.owed OR e.source_pk IS NOT NULL OR l.source_pk IS NOT NULL
