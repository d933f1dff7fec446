-- FILL: the next page of keys, in the order of the primary key, of source and sidecar together:
-- so rows without a vector are found, and vectors without a row.
WITH page AS ({page_of_keys}), owed AS (
    SELECT %(key)s AS sidecar, {page_key} AS source_pk, statement_timestamp() AS queued_at FROM page
), {claimed}
SELECT (SELECT array_agg(ARRAY[sidecar, keys::text, longest::text]) FROM too_long),
    p.picked, p.last, c.sidecar, c.source_pk, c.attempts
FROM (
    SELECT count(*) AS picked, (array_agg({page_key} ORDER BY {page_desc}))[1] AS last FROM page
) p
LEFT JOIN claimed c ON c.token = %(token)s::uuid
