-- COUNT: attempts of rows that are tried one by one, where a claim has counted one for all.
UPDATE embedsync_ledger
SET attempts = greatest(attempts + %(attempts)s, 0)
-- As in done.sql.
WHERE ctid = ANY(ARRAY(SELECT unnest(%(ctids)s::tid[])))
