-- FAIL and RELEASE: rows of mine return, due after a delay of their own, or parked (NULL).
-- A row that changed in the meantime is another text: due at once, and its attempts start anew.
UPDATE embedsync_ledger AS l
SET token = NULL,
    run_at = clock_timestamp() + CASE WHEN dirty THEN 0 ELSE u.delay END * interval '1 second',
    attempts = CASE WHEN dirty THEN 0 ELSE greatest(attempts - %(refund)s, 0) END,
    -- What holds up a row that is not to blame holds up another text of it, too.
    -- But what its embedder hung in was the other text.
    last_error = CASE
        WHEN dirty AND (%(refund)s = 0 OR starts_with(%(error)s, 'UnansweredError')
            OR starts_with(last_error, 'UnansweredError')) THEN ''
        WHEN %(error)s = '' THEN last_error
        ELSE %(error)s END,
    dirty = false
FROM unnest(%(ctids)s::tid[], %(delays)s::float8[]) AS u(ctid, delay)
WHERE l.ctid = u.ctid
    -- As in done.sql.
    AND l.ctid = ANY(ARRAY(SELECT unnest(%(ctids)s::tid[])))
