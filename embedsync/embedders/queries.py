"""The vectors of search texts: made once, and then kept in Django's cache."""

import logging
from array import array
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Any

from django.core.cache import caches
from django.db import connections, router, transaction

from embedsync.conf import settings
from embedsync.embedders.base import Embedder

logger = logging.getLogger("embedsync")


def query_vector(embedder: Embedder, text: str) -> list[float]:
    """``embedder.checked_query(text)``, or what it said before: ``(dimensions,)``, float32.

    What the cache is asked for is a digest, so that no search text is left in it. A cache that
    fails costs the time of an embedding and a warning: no search fails with it.
    """
    alias = settings.query_cache
    if alias is None or not text.strip():
        return embedder.checked_query(text)
    content = f"{embedder.query_fingerprint}\0{text}".encode("utf-8", "surrogatepass")
    key = f"embedsync:query:{blake2b(content, digest_size=16).hexdigest()}"
    kept = _get(alias, key)
    vector = array("f")
    if isinstance(kept, bytes) and len(kept) == embedder.dimensions * vector.itemsize:
        vector.frombytes(kept)
        return vector.tolist()
    vector.extend(embedder.checked_query(text))
    _set(alias, key, vector.tobytes())
    return vector.tolist()


def _get(alias: str, key: str) -> Any:
    try:
        with _savepoint(alias):
            return caches[alias].get(key)
    except Exception:
        logger.warning("the cache %r of search texts failed", alias, exc_info=True)
        return None


def _set(alias: str, key: str, value: bytes) -> None:
    try:
        with _savepoint(alias):
            caches[alias].set(key, value, settings.query_cache_seconds)
    except Exception:
        logger.warning("the cache %r of search texts failed", alias, exc_info=True)


def _savepoint(alias: str) -> AbstractContextManager[Any]:
    """Around a cache that is a table: its failure would end the transaction of who searches."""
    model: Any = getattr(caches[alias], "cache_model_class", None)
    if model is None:
        return nullcontext()
    using = router.db_for_write(model)
    return transaction.atomic(using) if connections[using].in_atomic_block else nullcontext()
