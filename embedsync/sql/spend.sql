-- Part of a budget's move: this minute's row of an embedder, locked, so that workers grant themselves
-- rows one after another; and how long the minute still lasts, in seconds.
INSERT INTO embedsync_embedder_minute AS m (embedder, minute)
VALUES (%(embedder)s, date_trunc('minute', statement_timestamp()))
ON CONFLICT (embedder, minute) DO UPDATE SET minute = m.minute
RETURNING
    minute, granted_rows, granted_tokens,
    60 - extract(second FROM statement_timestamp())::float8
