-- Part of fold.sql and fill_page.sql: what "owed" lists enters the ledger, and is leased to this worker
-- where it serves the sidecar. A row under somebody's live lease is only marked dirty.
too_long AS (
    -- For the ledger's index, which holds some 2,700 bytes; one such key would fail all the others.
    SELECT sidecar, count(*) AS keys, max(octet_length(source_pk)) AS longest
    FROM owed
    WHERE octet_length(source_pk) > 2500
    GROUP BY sidecar
), claimed AS (
    INSERT INTO embedsync_ledger AS l (sidecar, source_pk, token, run_at, attempts, queued_at, worker)
    SELECT
        sidecar, source_pk,
        CASE WHEN sidecar = ANY(%(served)s) THEN %(token)s::uuid END,
        clock_timestamp()
            + CASE WHEN sidecar = ANY(%(served)s) THEN %(lease)s ELSE 0 END * interval '1 second',
        CASE WHEN sidecar = ANY(%(served)s) THEN 1 ELSE 0 END,
        queued_at,
        CASE WHEN sidecar = ANY(%(served)s) THEN %(worker)s ELSE '' END
    FROM owed
    WHERE octet_length(source_pk) <= 2500
    -- In the order in which every worker locks, so that two of them cannot deadlock.
    ORDER BY sidecar COLLATE "C", source_pk COLLATE "C"
    -- statement_timestamp(): all five must see the same moment, or a lease that ends between
    -- two of them loses the event.
    ON CONFLICT (sidecar, source_pk) DO UPDATE SET
        dirty = l.token IS NOT NULL AND l.run_at > statement_timestamp(),
        token = CASE WHEN l.token IS NOT NULL AND l.run_at > statement_timestamp()
            THEN l.token ELSE excluded.token END,
        run_at = CASE WHEN l.token IS NOT NULL AND l.run_at > statement_timestamp()
            THEN l.run_at ELSE excluded.run_at END,
        attempts = CASE
            WHEN l.token IS NULL THEN excluded.attempts
            WHEN l.run_at > statement_timestamp() THEN l.attempts
            -- Its worker died: that counts, whatever has changed since.
            ELSE l.attempts + excluded.attempts END,
        -- A parked row does not wait: what makes it due again is what it has waited since.
        -- One in somebody's hands will have waited since it changed there.
        queued_at = CASE
            WHEN l.run_at IS NULL THEN excluded.queued_at
            WHEN l.token IS NOT NULL AND l.run_at > statement_timestamp() AND NOT l.dirty
            THEN excluded.queued_at
            ELSE l.queued_at END,
        worker = CASE WHEN l.token IS NOT NULL AND l.run_at > statement_timestamp()
            THEN l.worker ELSE excluded.worker END,
        -- What its embedder hung in may have been another text.
        last_error = CASE WHEN l.token IS NULL AND starts_with(l.last_error, 'UnansweredError')
            THEN '' ELSE l.last_error END
    RETURNING l.sidecar, l.source_pk, l.attempts, l.token
)
