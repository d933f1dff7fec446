-- COMPLETE: the vectors of rows that are locked.
INSERT INTO {sidecar} ({columns}, ordinal, embedded_at, digest, vector, cut)
-- DISTINCT ON, because the key of a partitioned table may be unique in each partition only.
SELECT DISTINCT ON ({page}) {page}, 0, statement_timestamp(), embedsync_given.digest,
    embedsync_given.vector, embedsync_given.key = ANY(%(cut)s::text[])
FROM unnest(%(pks)s::text[], %(digests)b::bytea[], %(vectors)b::{vector_type}[])
    AS embedsync_given(key, digest, vector)
-- No vector for a row that has been deleted or excluded in the meantime.
CROSS JOIN LATERAL (
    SELECT {pk_page} FROM {source} WHERE ({pk}) = ({given_key}) AND {eligible}
    -- Each key is looked up; else the planner may read all of a source that is not large.
    OFFSET 0
) AS embedsync_source
ORDER BY {page}
ON CONFLICT ({columns}, ordinal) DO UPDATE
SET embedded_at = excluded.embedded_at, digest = excluded.digest, vector = excluded.vector,
    cut = excluded.cut
RETURNING {source_key}
