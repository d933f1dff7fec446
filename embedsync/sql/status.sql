-- STATUS: what is owed for each sidecar. One statement, so that what a worker moves meanwhile from
-- the inbox to the ledger is counted once.
SELECT
    sidecar, sum(waiting)::bigint, sum(leased)::bigint, sum(parked)::bigint,
    greatest(extract(epoch FROM statement_timestamp() - min(oldest)), 0)::float8
FROM (
    SELECT sidecar, count(*) AS waiting, 0 AS leased, 0 AS parked, min(queued_at) AS oldest
    FROM embedsync_inbox
    GROUP BY sidecar
    UNION ALL
    SELECT
        sidecar,
        -- Those whose lease has run out, too.
        count(*) FILTER (WHERE token IS NULL AND run_at IS NOT NULL
                         OR run_at <= statement_timestamp()),
        count(*) FILTER (WHERE token IS NOT NULL AND run_at > statement_timestamp()),
        count(*) FILTER (WHERE run_at IS NULL),
        min(queued_at) FILTER (WHERE run_at IS NOT NULL)
    FROM embedsync_ledger
    GROUP BY sidecar
) owed
GROUP BY sidecar
