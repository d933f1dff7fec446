"""Embedders: what turns texts into vectors. One instance a process and alias."""

import threading
from collections.abc import Sequence

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import connections
from django.utils.module_loading import import_string

from embedsync.conf import settings
from embedsync.embedders.base import (
    Embedder,
    EmbedderError,
    MismatchError,
    RefusedError,
    UnansweredError,
    UnavailableError,
    Vectors,
)
from embedsync.embedders.queries import query_vector

__all__ = [
    "Embedder",
    "EmbedderError",
    "MismatchError",
    "RefusedError",
    "UnansweredError",
    "UnavailableError",
    "Vectors",
    "aembed_query",
    "embed_query",
    "get_embedder",
    "query_vector",
]

_instances: dict[str, Embedder] = {}
# Two requests that search at the same moment must not load the model twice.
_lock = threading.Lock()


def get_embedder(alias: str = "default") -> Embedder:
    """The embedder that ``EMBEDSYNC_EMBEDDERS`` names ``alias``; made once a process.

    Raises ``ImproperlyConfigured`` where its settings are wrong.
    """
    with _lock:
        if alias not in _instances:
            config = settings.embedder(alias)
            try:
                backend: type[Embedder] = import_string(config.backend)
            except ImportError as error:
                raise ImproperlyConfigured(
                    f"EMBEDSYNC_EMBEDDERS[{alias!r}]: BACKEND {config.backend!r} cannot be"
                    f" imported: {error}"
                ) from error
            try:
                made = backend(model=config.model, dimensions=config.dimensions, **config.options)
                size = made.batch_size
            except TypeError as error:
                raise ImproperlyConfigured(
                    f"EMBEDSYNC_EMBEDDERS[{alias!r}]: {error}. See the backend's OPTIONS."
                ) from error
            except ImproperlyConfigured:
                raise
            except Exception as error:
                raise ImproperlyConfigured(
                    f"EMBEDSYNC_EMBEDDERS[{alias!r}]: {type(error).__name__}: {error}"
                ) from error
            if type(size) is not int or size < 1:
                raise ImproperlyConfigured(
                    f"EMBEDSYNC_EMBEDDERS[{alias!r}]: batch_size is {size!r}, and a whole number is"
                    " needed, 1 or more."
                )
            _instances[alias] = made
        return _instances[alias]


def made_embedders() -> dict[str, Embedder]:
    """The embedders that this process has made so far, by alias."""
    return dict(_instances)


def embed_query(text: str, embedder: str = "default") -> Sequence[float]:
    """The vector of a search text, ``(dimensions,)``; what was asked before comes from the cache.

    Under ``ATOMIC_REQUESTS``, call it before the transaction and pass the vector to ``similar()``:
    then no transaction is open while a remote embedder answers.

    Raises ``ValueError`` where the text is blank.
    """
    return query_vector(get_embedder(embedder), text)


async def aembed_query(text: str, embedder: str = "default") -> Sequence[float]:
    """``embed_query()`` for async views: it runs in a thread of its own and blocks no loop."""
    return await sync_to_async(_embed_and_close, thread_sensitive=False)(text, embedder)


def _embed_and_close(text: str, embedder: str) -> Sequence[float]:
    try:
        return embed_query(text, embedder)
    finally:
        # A cache may be a table, and no request's end closes what this thread has opened for it.
        connections.close_all()


def _forget(*, setting: str, **_: object) -> None:
    if setting == "EMBEDSYNC_EMBEDDERS":
        _instances.clear()


setting_changed.connect(_forget, dispatch_uid="embedsync.embedders")
