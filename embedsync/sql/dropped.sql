-- Sidecars that are known, and have no trigger.
WITH known AS (
    SELECT key FROM embedsync_sidecar
    UNION SELECT DISTINCT sidecar FROM embedsync_ledger
    UNION SELECT DISTINCT sidecar FROM embedsync_inbox
)
SELECT
    (SELECT quote_ident(nspname) FROM pg_namespace
     WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = 'embedsync_inbox'::regclass)),
    (SELECT array_agg(key) FROM known WHERE key NOT IN (SELECT key FROM embedsync_trigger))
