-- Run by migration 0001, and so not to be changed: a change is a migration of its own.
-- Both tables are small and churn: vacuum by the number of dead rows, and never wait for a lock to
-- give pages back.
ALTER TABLE embedsync_inbox SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = off);
ALTER TABLE embedsync_ledger SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, vacuum_truncate = off,
    -- Room on each page for the new version of a row whose lease changes.
    fillfactor = 70);
