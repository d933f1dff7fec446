-- COMPLETE, at its end: clean rows leave the ledger, dirty ones are due again at once.
WITH mine AS MATERIALIZED (
    SELECT l.ctid, l.dirty
    FROM unnest(%(pks)s::text[]) AS u(source_pk)
    CROSS JOIN LATERAL (
        SELECT ctid, dirty FROM embedsync_ledger
        WHERE sidecar = %(key)s AND source_pk = u.source_pk AND token = %(token)s
        -- Never pulled up into a join that scans the whole ledger.
        OFFSET 0
    ) l
), again AS (
    UPDATE embedsync_ledger
    SET token = NULL, dirty = false, run_at = clock_timestamp(), attempts = 0, last_error = '',
        queued_at = clock_timestamp()
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM mine WHERE dirty))
)
DELETE FROM embedsync_ledger WHERE ctid = ANY(ARRAY(SELECT ctid FROM mine WHERE NOT dirty))
