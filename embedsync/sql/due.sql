-- DUE: retries whose time has come, and rows of workers that died. It needs no leader.
WITH due AS MATERIALIZED (
    SELECT d.ctid
    FROM unnest(%(served)s::text[]) AS s(key)
    CROSS JOIN LATERAL (
        SELECT ctid
        FROM embedsync_ledger
        -- Not clock_timestamp(): it is no condition of an index, and all that is leased or waits
        -- for its time would be walked through.
        WHERE sidecar = s.key AND run_at <= statement_timestamp()
            -- One in whose call the embedder hung has paid nothing, and goes alone all the same.
            AND (%(retried)s::boolean IS NULL
                OR (attempts > 0 OR starts_with(last_error, 'UnansweredError')) = %(retried)s::boolean)
        ORDER BY run_at
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) d
)
UPDATE embedsync_ledger
SET token = CASE WHEN dirty OR attempts < %(max_attempts)s THEN %(token)s::uuid END,
    -- A row that was tried often enough, and never came back to fail, is parked here,
    -- unless it is another text by now.
    run_at = CASE WHEN dirty OR attempts < %(max_attempts)s
        THEN clock_timestamp() + %(lease)s * interval '1 second' END,
    -- What it failed of before says nothing: one under a lease has never come back.
    last_error = CASE WHEN NOT dirty AND attempts >= %(max_attempts)s
            AND (token IS NOT NULL OR last_error = '')
        THEN 'The worker died while it held this row.' ELSE last_error END,
    attempts = least(attempts + 1, %(max_attempts)s),
    worker = %(worker)s,
    dirty = false
-- By ctid: the primary key's index may be full of dead entries.
WHERE ctid = ANY(ARRAY(SELECT ctid FROM due))
RETURNING sidecar, source_pk, attempts, token, starts_with(last_error, 'UnansweredError')
