-- EXPAND: events of related rows become work for the rows of the source that they belong to.
WITH embedsync_picked AS MATERIALIZED (
    SELECT ctid, seq, source_pk, reached, queued_at
    FROM embedsync_inbox
    WHERE ctid = ANY(%(ctids)s::tid[])
), found AS MATERIALIZED (
    SELECT embedsync_picked.seq, rows.key, rows.last, embedsync_picked.queued_at
    FROM embedsync_picked
    CROSS JOIN LATERAL (
        SELECT {page_key} AS key, row_number() OVER (ORDER BY {page_desc}) = 1 AS last
        FROM (
            SELECT {page}
            -- OFFSET 0: the rows that belong to it are found first, and sorted then. Otherwise the
            -- planner may walk through the source in the order of its key to find a handful.
            FROM (SELECT DISTINCT * FROM ({related}) AS related({page}) {after_reached} OFFSET 0) r
            ORDER BY {page}
            LIMIT %(limit)s
        ) page
    ) rows
), reached AS (
    SELECT seq, count(*) AS picked, max(key) FILTER (WHERE last) AS last FROM found GROUP BY seq
), done AS (
    DELETE FROM embedsync_inbox WHERE ctid = ANY(ARRAY(
        SELECT p.ctid FROM embedsync_picked p LEFT JOIN reached USING (seq)
        WHERE coalesce(reached.picked, 0) < %(limit)s))
), continued AS (
    UPDATE embedsync_inbox AS i SET reached = reached.last
    FROM embedsync_picked p JOIN reached USING (seq)
    WHERE i.ctid = p.ctid AND reached.picked = %(limit)s
), owed AS (
    SELECT %(key)s AS sidecar, key AS source_pk, min(queued_at) AS queued_at FROM found GROUP BY key
), {claimed}
SELECT (SELECT array_agg(ARRAY[sidecar, keys::text, longest::text]) FROM too_long),
    (SELECT count(*) FROM embedsync_picked), (SELECT count(*) FROM claimed)
