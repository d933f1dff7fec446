-- COMPLETE, at its end: clean rows leave the ledger. They are locked, so their ctid still holds.
DELETE FROM embedsync_ledger
-- Of an array that it cannot see the planner expects ten, and looks them up: for five hundred it
-- would read all of a ledger of 100,000 rows.
WHERE ctid = ANY(ARRAY(SELECT unnest(%(ctids)s::tid[])))
