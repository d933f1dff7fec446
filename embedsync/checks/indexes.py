"""Checks of how vectors are stored, compared and indexed."""

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register
from django.core.exceptions import ImproperlyConfigured

from embedsync.conf import settings
from embedsync.declaration import EmbeddingModel, declaration_of, has_source, sidecars
from embedsync.index import HNSW, IVFFlat
from embedsync.source import Declaration
from embedsync.space import LONGEST_INDEX


@register(Tags.models)
def check_indexes(**_: Any) -> list[CheckMessage]:
    """What of index, storage, distance and dimensions PostgreSQL would refuse, or nobody means."""
    found: list[CheckMessage] = []
    for sidecar in sidecars():
        if has_source(sidecar):
            found += wrong_index(sidecar)
    return found


def wrong_index(sidecar: type[EmbeddingModel]) -> Iterator[CheckMessage]:
    """All that does not fit in a sidecar's declaration."""
    declaration = declaration_of(sidecar)
    yield from wrong_bits(sidecar, declaration)
    yield from wrong_parameters(sidecar, declaration)
    try:
        embedder = settings.embedder(declaration.embedder).dimensions
    except ImproperlyConfigured:
        return  # embedsync.E002
    if declaration.dimensions is not None and declaration.dimensions > embedder:
        yield Error(
            f"{sidecar._meta.label} keeps {declaration.dimensions} dimensions, and its embedder"
            f" makes {embedder}.",
            hint=f"Set dimensions= to {embedder} at most, or leave it out to keep them all.",
            obj=sidecar,
            id="embedsync.E032",
        )
        return
    yield from too_long(sidecar, declaration, declaration.dimensions or embedder)


def wrong_bits(sidecar: type[EmbeddingModel], declaration: Declaration) -> Iterator[CheckMessage]:
    """Bits with what they cannot stand for."""
    if declaration.storage != "bit":
        return
    if declaration.distance != "cosine":
        yield Error(
            f'{sidecar._meta.label} has storage="bit" and distance="{declaration.distance}": the'
            " signs of components tell of directions, which is the cosine distance.",
            hint='Use distance="cosine", or storage="halfvec".',
            obj=sidecar,
            id="embedsync.E030",
        )
    if declaration.chunks is not None:
        yield Error(
            f'{sidecar._meta.label} has storage="bit" and chunks=: of several passages a row\'s'
            " nearest is found by full vectors, so that no index of bits would ever serve it.",
            hint='Use storage="halfvec", or leave chunks= out.',
            obj=sidecar,
            id="embedsync.E030",
        )
    if not isinstance(declaration.index, HNSW):
        yield Error(
            f'{sidecar._meta.label} has storage="bit" and index={declaration.index}: its bits are'
            " an HNSW index, and nothing else.",
            hint='Use index=HNSW(), or storage="halfvec".',
            obj=sidecar,
            id="embedsync.E030",
        )


def too_long(
    sidecar: type[EmbeddingModel], declaration: Declaration, dimensions: int
) -> Iterator[CheckMessage]:
    """More dimensions than pgvector can index."""
    longest = LONGEST_INDEX[declaration.storage]
    if declaration.index is None or dimensions <= longest:
        return
    others = [
        f'storage="{storage}" (up to {limit})'
        for storage, limit in LONGEST_INDEX.items()
        if dimensions <= limit and (storage != "bit" or declaration.distance == "cosine")
    ]
    cures = [*others, f"dimensions={longest} where the model allows it", "index=None"]
    yield Error(
        f"{sidecar._meta.label} has {dimensions} dimensions, and pgvector indexes"
        f' storage="{declaration.storage}" up to {longest}.',
        hint=f"Use {', or '.join(cures)}.",
        obj=sidecar,
        id="embedsync.E031",
    )


def wrong_parameters(
    sidecar: type[EmbeddingModel], declaration: Declaration
) -> Iterator[CheckMessage]:
    """Parameters of an index that pgvector does not take."""
    index = declaration.index
    if isinstance(index, HNSW):
        ranges = {"m": (index.m, 2, 100)}
        ranges["ef_construction"] = (index.ef_construction, max(4, 2 * number(index.m)), 1000)
    elif isinstance(index, IVFFlat) and index.lists is not None:
        ranges = {"lists": (index.lists, 1, 32768)}
    else:
        return
    for name, (value, least, most) in ranges.items():
        if type(value) is not int or not least <= value <= most:
            yield Error(
                f"The index of {sidecar._meta.label} has {name}={value!r}.",
                hint=f"Set it to a whole number from {least} to {most}"
                + (", at least twice m." if name == "ef_construction" else "."),
                obj=sidecar,
                id="embedsync.E033",
            )


def number(value: Any) -> int:
    """A whole number, or 0 where it is none: what is wrong with it is told for itself."""
    return value if type(value) is int else 0
