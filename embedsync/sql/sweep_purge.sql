-- SWEEP: the next page of vectors whose source is gone is removed; not where it has just come back.
WITH page AS (
    SELECT DISTINCT {source_page}
    FROM {sidecar} {after_source_pk}
    ORDER BY {page}
    LIMIT %(limit)s
), removed AS (
    DELETE FROM {sidecar}
    WHERE ({source_pk}) IN (SELECT {page} FROM page) AND to_regclass(%(source)s) IS NULL
    RETURNING {source_key} AS key
)
SELECT (SELECT count(DISTINCT key) FROM removed),
    (SELECT {page_key} AS text FROM page ORDER BY {page_desc} LIMIT 1)
