-- How many rows wait, once a minute.
INSERT INTO embedsync_minute AS m (sidecar, minute, waiting)
SELECT owed.sidecar, date_trunc('minute', statement_timestamp()), count(*)
FROM (
    SELECT sidecar FROM embedsync_inbox WHERE sidecar = ANY(%(served)s)
    UNION ALL
    SELECT sidecar FROM embedsync_ledger WHERE sidecar = ANY(%(served)s) AND run_at IS NOT NULL
) owed
-- To count a long queue takes a while: one of the workers does.
WHERE NOT EXISTS (
    SELECT FROM embedsync_minute
    WHERE minute = date_trunc('minute', statement_timestamp()) AND waiting > 0
        AND sidecar = owed.sidecar
)
GROUP BY owed.sidecar
ORDER BY owed.sidecar COLLATE "C"
ON CONFLICT (sidecar, minute) DO UPDATE SET waiting = greatest(m.waiting, excluded.waiting)
