
    -- Part of fill_page.sql and of the sweep: the next keys of sidecar and source, in the order in
    -- which they are locked: whoever waits for a locked sidecar must not hold the source meanwhile.
    SELECT {page}
    FROM (
        (SELECT DISTINCT {source_page} FROM {sidecar} {after_source_pk}
         ORDER BY {page} LIMIT %(limit)s)
        UNION
        (SELECT {pk_page} FROM {source} {after_pk} ORDER BY {pk} LIMIT %(limit)s)
    ) keys
    ORDER BY {page}
    LIMIT %(limit)s
