-- COUNT: attempts of rows that are tried one by one, where a claim has counted one for all.
UPDATE embedsync_ledger AS l
SET attempts = greatest(attempts + %(attempts)s, 0)
FROM unnest(%(pks)s::text[]) AS u(source_pk)
WHERE l.sidecar = %(key)s AND l.source_pk = u.source_pk AND l.token = %(token)s
