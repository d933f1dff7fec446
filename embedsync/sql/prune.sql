-- Old figures, and workers that ended without a word.
WITH gone AS (
    DELETE FROM embedsync_worker WHERE seen_at < statement_timestamp() - interval '1 day'
)
DELETE FROM embedsync_minute WHERE minute < statement_timestamp() - interval '2 days'
