-- A source was truncated: the vectors of all rows that are not there any more.
DELETE FROM {sidecar} AS s
WHERE NOT EXISTS (SELECT FROM {source} WHERE {pk} = s.source_id)
