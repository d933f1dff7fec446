-- Part of others: when a worker was last heard of. One with nothing to do writes nothing, which would
-- take a transaction id: its session tells, which asks for work all the time. When it did so last is
-- hidden from other roles than its own; to them it is alive as long as the session is there.
greatest(embedsync_worker.seen_at, (
    SELECT max(coalesce(state_change, statement_timestamp()))
    FROM pg_stat_activity
    WHERE datname = current_database()
        AND application_name = 'embedsync ' || right(embedsync_worker.name, 50)
))
