-- FOLD: the oldest events of rows leave the inbox and become work in the ledger.
WITH picked AS MATERIALIZED (
    SELECT ctid, seq, sidecar, source_pk, queued_at
    FROM embedsync_inbox
    -- Above the low-water mark, or each fold walks again through all that earlier ones deleted.
    WHERE seq > %(low)s AND kind = 'row'
    ORDER BY seq
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM embedsync_inbox WHERE ctid = ANY(ARRAY(SELECT ctid FROM picked))
), owed AS (
    SELECT sidecar, source_pk, min(queued_at) AS queued_at
    FROM picked
    -- A row without a key has no vector; its event must not hold up the others.
    WHERE source_pk IS NOT NULL
    GROUP BY sidecar, source_pk
), {claimed}
SELECT (SELECT array_agg(ARRAY[sidecar, keys::text, longest::text]) FROM too_long),
    p.picked, (SELECT count(*) FROM owed), p.last, c.sidecar, c.source_pk, c.attempts
FROM (SELECT count(*) AS picked, max(seq) AS last FROM picked) p
LEFT JOIN claimed c ON c.token = %(token)s::uuid
