-- PEEK: which moves have anything to do? One statement, which locks nothing, takes no transaction id
-- and costs a fraction of a move that finds nothing.
SELECT
    -- In the order of the key, so that it begins above the low-water mark.
    (SELECT seq FROM embedsync_inbox WHERE seq > %(low)s AND kind = 'row' ORDER BY seq LIMIT 1)
        IS NOT NULL,
    -- Where the mark may be if there is none, or it walks through all of the other kinds again.
    -- Not max(seq), for which PostgreSQL 16 reads all it takes for a few.
    (SELECT seq FROM embedsync_inbox WHERE seq > %(low)s ORDER BY seq DESC LIMIT 1),
    EXISTS (SELECT FROM embedsync_inbox WHERE kind <> 'row' AND sidecar = ANY(%(served)s)),
    EXISTS (
        SELECT FROM unnest(%(ready)s::text[], %(retried)s::bool[], %(since)s::float8[])
            AS s(key, retried, since)
        CROSS JOIN LATERAL (
            SELECT FROM embedsync_ledger
            -- Not clock_timestamp(): it is no condition of an index, and all that is leased or
            -- waits for its time would be walked through.
            WHERE sidecar = s.key AND run_at <= statement_timestamp()
                -- Above what has been looked at: until a vacuum, there are the dead entries of
                -- all whose lease would have ended. What is committed late a full look finds.
                AND run_at > coalesce(to_timestamp(s.since), '-infinity')
                -- As in due.sql.
                AND (s.retried OR attempts = 0 AND NOT starts_with(last_error, 'UnansweredError'))
            ORDER BY run_at
            LIMIT 1
        ) due
    ),
    extract(epoch FROM statement_timestamp())::float8
