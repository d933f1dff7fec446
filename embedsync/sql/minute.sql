-- What a worker has done since it last said so is added to the figures of this minute.
INSERT INTO embedsync_minute AS m (sidecar, minute, embedded, unchanged, failed)
SELECT u.key, date_trunc('minute', statement_timestamp()), u.embedded, u.unchanged, u.failed
FROM unnest(%(keys)s::text[], %(embedded)s::bigint[], %(unchanged)s::bigint[], %(failed)s::bigint[])
    AS u(key, embedded, unchanged, failed)
-- In the order in which every worker locks, so that two of them cannot deadlock.
ORDER BY u.key COLLATE "C"
ON CONFLICT (sidecar, minute) DO UPDATE SET
    embedded = m.embedded + excluded.embedded,
    unchanged = m.unchanged + excluded.unchanged,
    failed = m.failed + excluded.failed
