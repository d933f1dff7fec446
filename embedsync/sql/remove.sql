-- COMPLETE: vectors of rows that are blank, gone or excluded. Where such a row has come back since
-- it was read, its event is still owed.
DELETE FROM {sidecar}
USING unnest(%(pks)s::text[]) AS embedsync_given(key)
WHERE ({source_pk}) = ({given_key})
    AND (embedsync_given.key = ANY(%(blank)s::text[])
        -- A key may be gone in one way of writing it and there in another: 1.5 and 1.50, a and A.
        OR NOT EXISTS (SELECT FROM {source} WHERE ({pk}) = ({given_key}) AND {eligible}))
