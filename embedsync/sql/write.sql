-- COMPLETE: the vectors of rows that are locked.
-- The join to the source: no vector for a row that has been deleted or excluded in the meantime.
INSERT INTO {sidecar} AS s (source_id, ordinal, embedded_at, digest, vector)
SELECT {pk}, 0, statement_timestamp(), w.digest, w.vector
FROM unnest(%(pks)s::text[], %(digests)b::bytea[], %(vectors)b::halfvec[])
    AS w(source_pk, digest, vector)
JOIN {source} ON {pk} = w.source_pk::{pk_type}
WHERE {eligible}
ORDER BY {pk}
ON CONFLICT (source_id, ordinal) DO UPDATE
SET embedded_at = excluded.embedded_at, digest = excluded.digest, vector = excluded.vector
