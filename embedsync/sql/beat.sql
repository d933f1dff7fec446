-- A worker says that it is alive, and what it is doing.
INSERT INTO embedsync_worker (name, doing, settled, serves, errors)
VALUES (%(name)s, %(doing)s, %(settled)s, %(serves)s, %(errors)s)
ON CONFLICT (name) DO UPDATE SET
    seen_at = statement_timestamp(), doing = excluded.doing, settled = excluded.settled,
    serves = excluded.serves, errors = excluded.errors
