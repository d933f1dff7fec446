-- SWEEP: the next page of keys, and whether a fill has still to compare each: the one in hand, or,
-- where there is no state of the sidecar yet, the first.
WITH page AS ({page_of_keys})
-- Named, because ORDER BY would take a name of the output, which is text, for the column.
SELECT {page_key} AS text,
    coalesce(embedsync_given.in_hand, true) AND (embedsync_given.key IS NULL OR ({page}) > ({given_key}))
FROM page
LEFT JOIN (
    SELECT backfill_after AS key, backfilled_at IS NULL AS in_hand
    FROM embedsync_sidecar
    WHERE key = %(key)s
) embedsync_given ON true
ORDER BY {page}
