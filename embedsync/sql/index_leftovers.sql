-- Indexes of a sidecar that were never finished, or that REINDEX CONCURRENTLY has replaced and not
-- dropped: PostgreSQL adds _ccnew or _ccold, and a number, to the name.
SELECT i.indexrelid::regclass::text
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass(%(table)s)
    AND NOT i.indisvalid
    AND (c.relname = %(full)s::name
         OR regexp_replace(c.relname, '_cc(new|old)[0-9]*$', '') IN (%(name)s, %(full)s)
            AND c.relname <> %(name)s::name)
ORDER BY 1
