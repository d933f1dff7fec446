-- COMPLETE: vectors of rows that are gone, excluded or blank. Where such a row has come back since
-- it was read, its event is still owed.
DELETE FROM {sidecar}
USING unnest(%(pks)s::text[]) AS given(key)
WHERE ({source_pk}) = ({given_key})
