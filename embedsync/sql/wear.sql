-- WEAR: indexes of vectors as they are there, and what the server has counted of their tables.
SELECT
    wanted.name,
    i.indisvalid AND i.indisready,
    coalesce(pg_get_expr(i.indpred, i.indrelid) = 'false', false),
    -- Another one after each REINDEX, restore, TRUNCATE and VACUUM FULL.
    pg_relation_filenode(i.indexrelid)::bigint,
    coalesce(s.n_tup_ins, 0),
    coalesce(s.n_tup_upd + s.n_tup_del, 0),
    greatest(c.reltuples, s.n_live_tup, 0)::float8,
    pg_relation_size(i.indexrelid),
    (SELECT opcname FROM pg_opclass WHERE oid = i.indclass[0])
FROM unnest(%s::text[]) AS wanted(name)
JOIN pg_index i ON i.indexrelid = to_regclass(wanted.name)
JOIN pg_class c ON c.oid = i.indrelid
LEFT JOIN pg_stat_all_tables s ON s.relid = i.indrelid
