-- FILL: the next page of keys, in the order of the primary key, of source and sidecar together:
-- so rows without a vector are found, and vectors without a row.
WITH page AS (
    SELECT key
    FROM (
        (SELECT {pk} AS key FROM {source} {after_pk} ORDER BY {pk} LIMIT %(limit)s)
        UNION
        (SELECT DISTINCT source_id AS key FROM {sidecar} {after_source_id}
         ORDER BY source_id LIMIT %(limit)s)
    ) keys
    ORDER BY key
    LIMIT %(limit)s
), owed AS (
    SELECT %(key)s AS sidecar, key::text AS source_pk, statement_timestamp() AS queued_at FROM page
), {claimed}
SELECT p.picked, p.last, c.sidecar, c.source_pk, c.attempts
FROM (SELECT count(*) AS picked, (array_agg(key::text ORDER BY key DESC))[1] AS last FROM page) p
LEFT JOIN claimed c ON c.token = %(token)s::uuid
