-- Sidecars that are known, and have no trigger. The key is the trigger's first argument; PostgreSQL
-- keeps the arguments as bytes, each closed by a zero.
WITH served AS (
    SELECT convert_from(
        substring(t.tgargs FROM 1 FOR position('\x00'::bytea IN t.tgargs) - 1),
        getdatabaseencoding()) AS key
    FROM pg_trigger t
    JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE p.proname = 'embedsync_capture'
        AND p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'embedsync_inbox'::regclass)
), known AS (
    SELECT key FROM embedsync_sidecar
    UNION SELECT DISTINCT sidecar FROM embedsync_ledger
    UNION SELECT DISTINCT sidecar FROM embedsync_inbox
)
SELECT
    (SELECT quote_ident(nspname) FROM pg_namespace
     WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = 'embedsync_inbox'::regclass)),
    (SELECT array_agg(key) FROM known WHERE key NOT IN (SELECT key FROM served))
