"""An embedder that costs nothing, so that what is left is the worker and the server."""

import time
from collections.abc import Sequence

import numpy as np

from embedsync.embedders.base import Embedder, Vectors


class NoCostEmbedder(Embedder):
    """Returns rows of one array made beforehand: distinct unit vectors, whatever the texts are."""

    def __init__(self, *, model: str, dimensions: int) -> None:
        super().__init__(model=model, dimensions=dimensions)
        rows = np.random.default_rng(1).standard_normal((self.batch_size, dimensions))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        self.rows = rows.astype("float32")

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        vectors: Vectors = self.rows[: len(texts)]  # type: ignore[assignment]
        return vectors


class DistantEmbedder(NoCostEmbedder):
    """As a provider that answers each call after 200 ms, however many it is asked at a time."""

    batch_size = 100

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        time.sleep(0.2)
        return super().embed_documents(texts)
