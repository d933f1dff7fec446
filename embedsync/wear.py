"""How worn an index is: how much of its table has changed since it was built.

An index of vectors gets worse with updates and deletes, not with time, and no query tells so. The
server counts both for free. What it had counted when the index was built is noted, with the file
of the index: whoever builds it again, and however, gives it another file.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db import ProgrammingError, connections

from embedsync.declaration import EmbeddingModel, key_of
from embedsync.index import DeferredIvfflatIndex, deferred_index
from embedsync.sql import statement

WORN = 0.3  # of the rows, changed since: about 0.02 of recall@10 (docs/indexes.md)
FEWEST = 1000  # changed rows; below these an exact search costs nothing either


@dataclass(frozen=True)
class Counts:
    """An index in the database: what is there, and what has been counted of its table."""

    is_valid: bool
    is_empty: bool
    filenode: int
    inserted: int
    changed: int
    rows: float
    size: int
    operator_class: str


@dataclass(frozen=True)
class IndexStatus:
    """An index: "none" is declared, "missing", "unbuilt" until the first fill ends, or "built".

    "invalid" is one whose building was broken off, "outdated" one that serves no search, because
    another distance or storage is declared than was migrated. ``changed`` is the share of rows that
    have changed since it was built, None where that is not known; ``is_due`` says that it should be
    built again, which ``embed_reindex`` does.
    """

    state: str
    changed: float | None = None
    is_due: bool = False

    @property
    def error(self) -> str:
        """Why it is no index of the sidecar that is declared, "" where it is one."""
        if self.state != "outdated":
            return ""
        said = "the index is of another distance or storage than is declared"
        return f"schema error: {said}: run migrate"


def counted(using: str, wanted: Iterable[type[EmbeddingModel]]) -> dict[str, Counts]:
    """What there is of the indexes of these sidecars, by sidecar; those that are missing are not.

    In one query, because there may be many.
    """
    quote = connections[using].ops.quote_name
    names = {
        quote(index.name): key_of(sidecar)
        for sidecar in wanted
        if (index := deferred_index(sidecar)) is not None
    }
    with connections[using].cursor() as cursor:
        cursor.execute(statement("wear"), [list(names)])
        return {names[name]: Counts(*row) for name, *row in cursor.fetchall()}


def index_status(sidecar: type[EmbeddingModel], found: Counts | None, built: Any) -> IndexStatus:
    """How a sidecar's index is; ``built`` is what was noted of it (``SidecarState``)."""
    index = deferred_index(sidecar)
    if found is None:
        return IndexStatus("none" if index is None else "missing")
    if found.is_empty:
        return IndexStatus("unbuilt")
    if not found.is_valid:
        return IndexStatus("invalid", is_due=True)
    if index is not None and found.operator_class not in index.opclasses:
        return IndexStatus("outdated")
    if not built or built["filenode"] != found.filenode:
        return IndexStatus("built")
    # After a crash and after pg_stat_reset() the server begins to count anew.
    is_reset = found.inserted < built["inserted"] or found.changed < built["changed"]
    before = {"inserted": 0, "changed": 0} if is_reset else built
    changed = found.changed - before["changed"]
    if isinstance(index, DeferredIvfflatIndex):
        # The centres of its lists are those of the rows that were there.
        changed += found.inserted - before["inserted"]
    share = changed / max(found.rows, 1.0)
    return IndexStatus("built", round(share, 3), changed >= FEWEST and share >= WORN)


def note_built(using: str, sidecar: type[EmbeddingModel]) -> None:
    """Note what the server has counted, where this is an index that it was not noted of.

    Not in a transaction.
    """
    found = counted(using, [sidecar]).get(key_of(sidecar))
    if found is None or found.is_empty or not found.is_valid:
        return
    # The owner of a sidecar may not write there: then a worker does it when it next starts.
    with suppress(ProgrammingError), connections[using].cursor() as cursor:
        cursor.execute(
            # The next one that is to be built need not wait for its turn.
            "UPDATE embedsync_sidecar SET index_built = %s::jsonb, index_until = NULL"
            " WHERE key = %s AND (index_built ->> 'filenode')::bigint IS DISTINCT FROM %s",
            [
                json.dumps(
                    {
                        "filenode": found.filenode,
                        "inserted": found.inserted,
                        "changed": found.changed,
                    }
                ),
                key_of(sidecar),
                found.filenode,
            ],
        )
