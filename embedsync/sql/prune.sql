-- Old figures, and workers that ended without a word.
WITH gone AS (
    DELETE FROM embedsync_worker WHERE {heard} < statement_timestamp() - interval '1 day'
), spent AS (
    DELETE FROM embedsync_embedder_minute
    WHERE minute < statement_timestamp() - interval '2 days'
)
DELETE FROM embedsync_minute WHERE minute < statement_timestamp() - interval '2 days'
