-- Part of stale.sql: rows of the source that an event of a related row belongs to.
OR ({columns}) IN (
    SELECT embedsync_found.*
    FROM embedsync_inbox AS embedsync_picked
    CROSS JOIN LATERAL ({related}) AS embedsync_found
    WHERE embedsync_picked.kind = 'hop'
    AND embedsync_picked.sidecar = %s AND embedsync_picked.hop = %s
)
