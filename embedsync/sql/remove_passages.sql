-- COMPLETE: passages beyond those that a row still has.
DELETE FROM {sidecar}
USING unnest(%(pks)s::text[], %(counts)s::int[]) AS embedsync_given(key, passages)
WHERE ({source_pk}) = ({given_key}) AND {sidecar}.ordinal >= embedsync_given.passages
RETURNING {source_key}
