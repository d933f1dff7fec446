"""Vector embeddings of PostgreSQL rows, kept in step with the rows."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedsync.embedders import aembed_query, embed_query
    from embedsync.pause import paused
    from embedsync.search import similar

__version__ = "0.1.0"
__all__ = ["aembed_query", "embed_query", "paused", "similar"]


def __getattr__(name: str) -> Any:
    # Lazy, because Django imports this package before its models can be loaded.
    if name == "similar":
        from embedsync.search import similar

        return similar
    if name in ("embed_query", "aembed_query"):
        from embedsync import embedders

        return getattr(embedders, name)
    if name == "paused":
        from embedsync.pause import paused

        return paused
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
