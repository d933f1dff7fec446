-- COMPLETE: the vectors of rows that are locked.
-- The join to the source: no vector for a row that has been deleted or excluded in the meantime.
INSERT INTO {sidecar} ({columns}, ordinal, embedded_at, digest, vector, cut)
-- DISTINCT ON, because the key of a partitioned table may be unique in each partition only.
SELECT DISTINCT ON ({pk}) {pk}, 0, statement_timestamp(), embedsync_given.digest,
    embedsync_given.vector, embedsync_given.key = ANY(%(cut)s::text[])
FROM unnest(%(pks)s::text[], %(digests)b::bytea[], %(vectors)b::halfvec[])
    AS embedsync_given(key, digest, vector)
JOIN {source} ON ({pk}) = ({given_key})
WHERE {eligible}
ORDER BY {pk}
ON CONFLICT ({columns}, ordinal) DO UPDATE
SET embedded_at = excluded.embedded_at, digest = excluded.digest, vector = excluded.vector,
    cut = excluded.cut
RETURNING {source_key}
