-- Run by migration 0001, and so not to be changed: a change is a migration of its own.
-- For Django's admin, which wants a key of one column. security_invoker: with the rights of who asks.
CREATE VIEW embedsync_ledger_row WITH (security_invoker) AS
SELECT sidecar || ' ' || source_pk AS key, embedsync_ledger.* FROM embedsync_ledger
