"""For the tests of projects that use embedsync: docs/testing.md.

The functions serve pytest and Django's ``TestCase`` alike; ``plugin`` has them as fixtures.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedsync.testing.contract import EmbedderContract
    from embedsync.testing.fakes import fake_embedder
    from embedsync.testing.sync import assert_in_sync, embed_now

__all__ = ["EmbedderContract", "assert_in_sync", "embed_now", "fake_embedder"]


def __getattr__(name: str) -> Any:
    # Lazy, because pytest may load the plugin, and so this package, before Django is set up.
    if name == "EmbedderContract":
        from embedsync.testing.contract import EmbedderContract

        return EmbedderContract
    if name == "fake_embedder":
        from embedsync.testing.fakes import fake_embedder

        return fake_embedder
    if name in ("assert_in_sync", "embed_now"):
        from embedsync.testing import sync

        return getattr(sync, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
