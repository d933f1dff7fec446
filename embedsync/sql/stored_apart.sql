-- How many bytes of long values tables have; without end where they lie in other tables: partitions,
-- inheritance children, views.
SELECT coalesce(sum(CASE
    WHEN c.relkind = 'r' AND NOT c.relhassubclass
    THEN coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)::float8
    ELSE 'infinity' END), 0)
FROM unnest(%(tables)s::text[]) AS t(name)
JOIN pg_class c ON c.oid = to_regclass(t.name)
