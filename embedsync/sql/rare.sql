-- RARE: of which kinds the oldest events are that are not of rows.
SELECT DISTINCT sidecar, hop
FROM unnest(%(served)s::text[]) AS served(key)
-- Of each, because one whose tables are locked keeps its events.
CROSS JOIN LATERAL (
    SELECT sidecar, hop
    FROM embedsync_inbox
    WHERE kind <> 'row' AND sidecar = served.key
    ORDER BY seq
    LIMIT %(limit)s
) AS oldest
ORDER BY sidecar, hop
