-- STALE: whether anything says that a row has changed since its vector was made.
(
    -- Uncorrelated, so that it is hashed once, however many rows the index brings along.
    ({columns}) IN (
        SELECT {given_key}
        FROM (
            SELECT source_pk FROM embedsync_inbox
            WHERE sidecar = %s AND kind = 'row' AND source_pk IS NOT NULL
            UNION ALL
            SELECT source_pk FROM embedsync_ledger WHERE sidecar = %s
        ) AS embedsync_given(key)
    )
    {hops}
    -- A fill has not come to this row, or one is due because a trigger failed.
    OR EXISTS (
        SELECT FROM embedsync_sidecar AS filled, embedsync_missed AS failed
        WHERE filled.key = %s
        AND (
            filled.missed <> CASE WHEN failed.is_called THEN failed.last_value ELSE 0 END
            OR filled.missed_seen <> filled.missed
            OR (
                filled.backfilled_at IS NULL
                AND (filled.backfill_after IS NULL OR ({columns}) > ({after_key}))
            )
        )
    )
)
