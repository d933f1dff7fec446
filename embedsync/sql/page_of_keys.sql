
    -- Part of fill_page.sql and of the sweep: the next keys of source and sidecar.
    SELECT {page}
    FROM (
        (SELECT {pk_page} FROM {source} {after_pk} ORDER BY {pk} LIMIT %(limit)s)
        UNION
        (SELECT DISTINCT {source_page} FROM {sidecar} {after_source_pk}
         ORDER BY {page} LIMIT %(limit)s)
    ) keys
    ORDER BY {page}
    LIMIT %(limit)s
