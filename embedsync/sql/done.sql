-- COMPLETE, at its end: clean rows leave the ledger. They are locked, so their ctid still holds.
DELETE FROM embedsync_ledger WHERE ctid = ANY(%(ctids)s::tid[])
