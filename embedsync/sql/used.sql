-- What a worker has asked of its embedders since it last said so is added to this minute's figures.
INSERT INTO embedsync_embedder_minute AS m (embedder, minute, calls, tokens)
SELECT u.embedder, date_trunc('minute', statement_timestamp()), u.calls, u.tokens
FROM unnest(%(embedders)s::text[], %(calls)s::bigint[], %(tokens)s::bigint[])
    AS u(embedder, calls, tokens)
-- In the order in which every worker locks, so that two of them cannot deadlock.
ORDER BY u.embedder COLLATE "C"
ON CONFLICT (embedder, minute) DO UPDATE SET
    calls = m.calls + excluded.calls, tokens = m.tokens + excluded.tokens
