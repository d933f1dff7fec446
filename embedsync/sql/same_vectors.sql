-- Keys that are asked for, and how the sidecar writes them.
SELECT embedsync_given.key, {source_key}
FROM unnest(%s::text[]) AS embedsync_given(key)
JOIN {sidecar} ON ({source_pk}) = ({given_key})
