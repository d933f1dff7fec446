-- Keys that are asked for, and how the source writes them.
SELECT embedsync_given.key, {key}
FROM unnest(%s::text[]) AS embedsync_given(key)
JOIN {source} ON ({pk}) = ({given_key})
