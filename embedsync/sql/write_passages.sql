-- COMPLETE: passages of rows that are locked, where a row has several of them, or had.
-- The join to the source: no vector for a row that has been deleted or excluded in the meantime.
INSERT INTO {sidecar} ({columns}, ordinal, embedded_at, digest, vector{passage_column})
-- DISTINCT ON, because the key of a partitioned table may be unique in each partition only.
SELECT DISTINCT ON ({pk}, embedsync_given.ordinal)
    {pk}, embedsync_given.ordinal, statement_timestamp(), embedsync_given.digest,
    coalesce(embedsync_fresh.vector, embedsync_stored.vector){passage}
FROM unnest(%(pks)s::text[], %(ordinals)s::int[], %(digests)b::bytea[], %(passages)s::text[],
            %(numbers)s::int[])
    AS embedsync_given(key, ordinal, digest, passage, number)
JOIN {source} ON ({pk}) = ({given_key})
LEFT JOIN unnest(%(vectors)b::{vector_type}[]) WITH ORDINALITY AS embedsync_fresh(vector, number)
    ON embedsync_fresh.number = embedsync_given.number
-- What has only moved keeps its vector: the row as it was before this statement is what it sees.
LEFT JOIN LATERAL (
    SELECT vector
    FROM {sidecar}
    WHERE ({source_pk}) = ({pk}) AND digest = embedsync_given.digest
        AND embedsync_given.number IS NULL
    LIMIT 1
) embedsync_stored ON true
WHERE {eligible}
ORDER BY {pk}, embedsync_given.ordinal
ON CONFLICT ({columns}, ordinal) DO UPDATE
SET embedded_at = excluded.embedded_at, digest = excluded.digest, vector = excluded.vector,
    cut = excluded.cut{passage_set}
RETURNING {source_key}
