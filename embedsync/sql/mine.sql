-- Lock what is still mine, in the order in which every worker locks. What follows is a statement of
-- its own, so that it sees the rows as they were locked; until the end nobody moves them.
-- LATERAL, because "source_pk = ANY(...)" walks the dead index entries of all the others as well.
SELECT u.source_pk, l.ctid, l.dirty
FROM unnest(%(pks)s::text[]) AS u(source_pk)
CROSS JOIN LATERAL (
    SELECT ctid, dirty FROM embedsync_ledger
    WHERE sidecar = %(key)s AND source_pk = u.source_pk AND token = %(token)s
    FOR UPDATE {otherwise}
) l
