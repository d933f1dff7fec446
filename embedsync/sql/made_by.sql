-- The vector of a search text, if the same embedder made those that it is compared with; else an
-- error, which PostgreSQL raises because of the cast. In the search itself, where it costs no query.
CASE WHEN coalesce((SELECT embedder FROM embedsync_sidecar WHERE key = %s), '') IN ('', %s)
THEN {vector}
ELSE format(
    'embedsync: the vectors of %%s were made by %%s and this text by %%s', %s::text,
    (SELECT embedder FROM embedsync_sidecar WHERE key = %s), %s::text
)::{cast} END
