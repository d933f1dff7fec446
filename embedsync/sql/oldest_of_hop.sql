-- EXPAND, before: its events, locked. A statement of its own, because it is planned in another way.
SELECT ctid
FROM embedsync_inbox
WHERE kind = 'hop' AND sidecar = %(key)s AND hop = %(hop)s
ORDER BY seq
LIMIT %(events)s
FOR UPDATE SKIP LOCKED
