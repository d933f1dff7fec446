-- Whether an index that a worker left behind is whole, and the one that the empty one stands for.
SELECT
    f.indisvalid
    AND (fc.relam, f.indrelid, f.indkey::text, f.indclass::text, pg_get_expr(f.indexprs, f.indrelid))
        IS NOT DISTINCT FROM
        (ec.relam, e.indrelid, e.indkey::text, e.indclass::text, pg_get_expr(e.indexprs, e.indrelid))
    -- One that does not say how many lists it is to have takes what there is.
    AND (ec.reloptions IS NULL OR fc.reloptions = ec.reloptions)
FROM pg_index f
JOIN pg_class fc ON fc.oid = f.indexrelid
LEFT JOIN pg_index e ON e.indexrelid = to_regclass(%(empty)s)
LEFT JOIN pg_class ec ON ec.oid = e.indexrelid
WHERE f.indexrelid = to_regclass(%(full)s)
