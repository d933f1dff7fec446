-- SWEEP: rows that differ become events, as if they had just changed.
INSERT INTO embedsync_inbox (sidecar, kind, source_pk)
SELECT %(key)s, 'row', u.source_pk
FROM unnest(%(pks)s::text[]) WITH ORDINALITY AS u(source_pk, position)
ORDER BY u.position
