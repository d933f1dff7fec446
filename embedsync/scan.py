"""What a search tells the index scan: how much to look at, and when to give up.

The settings are made inside the query, so that it stays lazy and needs no transaction.
"""

from typing import Any

from embedsync.conf import settings
from embedsync.declaration import EmbeddingModel, declaration_of
from embedsync.index import DeferredIvfflatIndex, deferred_index

# What makes an HNSW scan go on until the filters have let enough rows through, whatever lies in
# between. strict_order alone gives up at its limits of tuples and of memory.
SCAN_SETTINGS = {
    "hnsw.iterative_scan": "strict_order",
    "hnsw.max_scan_tuples": "2147483647",
    "hnsw.scan_mem_multiplier": "1000",
}
LARGEST_EF = 1000  # pgvector's
EF_PER_ROW = 2  # of the slice
CANDIDATES = 600  # at least, of a search through bits
CANDIDATES_PER_ROW = 40
LARGEST_LIMIT = 2**63 - 1  # PostgreSQL's
PROBED = 0.4  # of an IVFFlat index's lists, for a slice that ends at PROBED_ROWS
PROBED_ROWS = 100

# The lists of an index as it was built, which may be more than one that was built before.
PROBES = """(
SELECT least(greatest(ceil(max(option_value::float8) * %s), 1), 32768)::int::text
FROM pg_class CROSS JOIN pg_options_to_table(reloptions)
WHERE oid = to_regclass(%s) AND option_name = 'lists')"""


def settings_sql(
    sidecar: type[EmbeddingModel], end: int | None, quote: Any
) -> tuple[str, list[Any]]:
    """Calls that make the settings for a slice that ends at ``end``, and their parameters."""
    index = deferred_index(sidecar)
    if isinstance(index, DeferredIvfflatIndex):
        share = min(PROBED * max(1.0, (end or 0) / PROBED_ROWS), 1.0)
        return f"set_config('ivfflat.probes', {PROBES}, true)", [share, quote(index.name)]
    scan = {**SCAN_SETTINGS, "hnsw.ef_search": str(ef_search(end))}
    if declaration_of(sidecar).storage == "bit":
        # Rescoring puts them in order; strict_order would throw away those that come late.
        scan["hnsw.iterative_scan"] = "relaxed_order"
    calls = ", ".join(["set_config(%s, %s, true)"] * len(scan))
    return calls, [part for pair in scan.items() for part in pair]


def ef_search(end: int | None) -> int:
    """``hnsw.ef_search`` for a slice that ends at ``end``: one list has to hold all its rows."""
    return min(max(settings.ef_search, EF_PER_ROW * (end or 0)), LARGEST_EF)


def candidates(end: int) -> int:
    """How many candidates a search through bits rescores for a slice that ends at ``end``."""
    return min(max(CANDIDATES, CANDIDATES_PER_ROW * end), LARGEST_LIMIT)
