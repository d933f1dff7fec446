-- ABSOLVE: rows that wait because of a refusal, which is over. Leased ones, too: they may come back.
UPDATE embedsync_ledger
SET last_error = ''
WHERE ctid = ANY(ARRAY(
    SELECT ctid
    FROM embedsync_ledger
    WHERE sidecar = %(key)s AND run_at IS NOT NULL AND last_error ~ %(refused)s
    FOR UPDATE SKIP LOCKED
))
