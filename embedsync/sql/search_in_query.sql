-- A search as part of another query: exactly, where the index gives too few rows.
WITH embedsync_near AS MATERIALIZED ({near})
SELECT * FROM embedsync_near WHERE (SELECT count(*) FROM embedsync_near) >= %s
UNION ALL
-- What depends on nothing is a one-time filter: as long as it is false, nothing below it is run.
SELECT * FROM ({exact}) AS embedsync_exact WHERE (SELECT count(*) FROM embedsync_near) < %s
