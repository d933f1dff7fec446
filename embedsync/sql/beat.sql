-- A worker says that it is alive, and what it is doing.
INSERT INTO embedsync_worker (name, doing, settled) VALUES (%(name)s, %(doing)s, %(settled)s)
ON CONFLICT (name) DO UPDATE
SET seen_at = statement_timestamp(), doing = excluded.doing, settled = excluded.settled
