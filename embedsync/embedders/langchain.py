"""An ``Embeddings`` object of LangChain as an embedder; needs no extra, only the object."""

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from embedsync.embedders.base import Embedder, Vectors
from embedsync.embedders.loading import loading
from embedsync.embedders.trouble import trouble_of


class LangChainEmbedder(Embedder):
    """Asks an object that has LangChain's ``embed_documents`` and ``embed_query``.

    Options: ``embeddings`` is that object, or the dotted path of it or of what makes it, a class or
    a function, when it is first used; ``batch_size`` is how many texts it is given at once.
    ``MODEL`` tells its vectors from others' and is up to you.
    """

    def __init__(
        self, *, model: str, dimensions: int, embeddings: Any = None, batch_size: int = 128
    ) -> None:
        if not model:
            raise ImproperlyConfigured(
                "LangChainEmbedder needs MODEL: a name that changes with whatever its vectors"
                " depend on."
            )
        if not embeddings:
            raise ImproperlyConfigured(
                "LangChainEmbedder needs OPTIONS['embeddings']: the dotted path of an Embeddings"
                " object, or of a function that makes one."
            )
        super().__init__(model=model, dimensions=dimensions)
        self.batch_size = batch_size
        self._given = embeddings
        self._loading = threading.Lock()

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        vectors: Vectors = self._loaded.embed_documents(list(texts))
        return vectors

    def embed_query(self, text: str) -> Sequence[float]:
        vector: Sequence[float] = self._loaded.embed_query(text)
        return vector

    @property
    def _loaded(self) -> Any:
        with self._loading:
            return self._embeddings

    @cached_property
    def _embeddings(self) -> Any:
        with loading(self.model) as said:
            try:
                found = self._made()
            except Exception as error:
                # It may ask its server at once, which may be away.
                if (trouble := trouble_of(error)) is not None:
                    raise trouble from error
                raise
            said.append(type(found).__name__)
        return found

    def _made(self) -> Any:
        found = self._given
        if isinstance(found, str):
            try:
                found = import_string(found)
            except ImportError as error:
                raise ImproperlyConfigured(
                    f"OPTIONS['embeddings']: {self._given!r} cannot be imported: {error}"
                ) from error
        # A class has the methods, too, and is not what they are to be called on.
        if isinstance(found, type) or not hasattr(found, "embed_documents"):
            found = found() if callable(found) else found
        if not (hasattr(found, "embed_documents") and hasattr(found, "embed_query")):
            raise ImproperlyConfigured(
                f"OPTIONS['embeddings']: {self._given!r} is no Embeddings object and makes none: it"
                " has no embed_documents() and embed_query()."
            )
        return found
