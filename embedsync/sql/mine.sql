-- COMPLETE, first part: lock what is still mine, in the order in which every worker locks.
-- LATERAL, because "source_pk = ANY(...)" walks the dead index entries of all the others as well.
SELECT u.source_pk, l.dirty
FROM unnest(%(pks)s::text[]) WITH ORDINALITY AS u(source_pk, position)
CROSS JOIN LATERAL (
    SELECT dirty
    FROM embedsync_ledger
    WHERE sidecar = %(key)s AND source_pk = u.source_pk AND token = %(token)s
    FOR UPDATE
) l
WHERE EXISTS (
    -- A worker whose declaration has been superseded writes nothing.
    SELECT FROM embedsync_sidecar WHERE key = %(key)s AND fingerprint = %(fingerprint)s
)
