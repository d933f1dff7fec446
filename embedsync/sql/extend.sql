-- EXTEND: the lease of work that takes long.
UPDATE embedsync_ledger AS l
SET run_at = clock_timestamp() + %(lease)s * interval '1 second'
FROM unnest(%(pks)s::text[]) AS u(source_pk)
WHERE l.sidecar = %(key)s AND l.source_pk = u.source_pk AND l.token = %(token)s
