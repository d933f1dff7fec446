-- PEEK: is there anything to do? One statement, which locks nothing and takes no transaction id.
SELECT
    -- In the order of the key, so that it begins above the low-water mark whatever is estimated.
    (SELECT seq FROM embedsync_inbox WHERE seq > %(low)s AND kind = 'row' ORDER BY seq LIMIT 1)
        IS NOT NULL
    OR EXISTS (SELECT FROM embedsync_inbox WHERE kind <> 'row' AND sidecar = ANY(%(served)s))
    OR EXISTS (
        SELECT FROM unnest(%(ready)s::text[]) AS s(key)
        CROSS JOIN LATERAL (
            SELECT FROM embedsync_ledger
            WHERE sidecar = s.key AND run_at <= clock_timestamp()
            ORDER BY run_at
            LIMIT 1
        ) due
    )
