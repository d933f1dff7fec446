"""Local models through the sentence-transformers library (``pip install embedsync[local]``)."""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.base import Embedder, MismatchError, Vectors

logger = logging.getLogger("embedsync")

END_BYTES = 1_000_000
DOCUMENT_PROMPTS = (
    "document",
    "passage",
    "corpus",
)  # the first that a model has is put before texts


def digest_of(directory: Path) -> str:
    """Changes with the files of a model, of which large ones are read at both ends only."""
    content = hashlib.blake2b(digest_size=16)
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            content.update(f"{path.relative_to(directory)} {size}".encode())
            with path.open("rb") as file:
                content.update(file.read(END_BYTES))
                file.seek(max(size - END_BYTES, 0))
                content.update(file.read(END_BYTES))
    return content.hexdigest()


@contextmanager
def without_bars() -> Iterator[None]:
    """Load without the library's progress bar, which would stand between a worker's log lines."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


class SentenceTransformerEmbedder(Embedder):
    """A sentence-transformers model, by name or directory, loaded when it is first used.

    Options: ``query_prompt`` and ``document_prompt`` are put before each text (default: the model's
    own); ``normalize`` scales vectors to length 1; ``forward_size`` is how many texts go through
    the network at once; ``device`` and all others go to ``SentenceTransformer()`` as they are.
    """

    def __init__(
        self,
        *,
        model: str,
        dimensions: int,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        normalize: bool = True,
        forward_size: int = 16,
        **options: Any,
    ) -> None:
        if not model:
            raise ImproperlyConfigured(
                "SentenceTransformerEmbedder needs MODEL: the name or the directory of a model."
            )
        if str(model).startswith(("/", "./", "../", "~")) and not Path(model).is_dir():
            raise ImproperlyConfigured(f"MODEL: there is no directory {str(model)!r}.")
        super().__init__(model=str(model), dimensions=dimensions)
        self.query_prompt = query_prompt
        self.document_prompt = document_prompt
        self.normalize = normalize
        self.forward_size = forward_size
        self.options = options
        self._loading = threading.Lock()

    @cached_property
    def fingerprint(self) -> str:
        directory = Path(self.model)
        # A directory lies elsewhere on another machine: what counts is what is in it.
        name = digest_of(directory) if directory.is_dir() else self.model
        return (
            f"sentence-transformers:{name}:{self.dimensions}"
            f":{self.document_prompt!r}:{self.normalize}"
        )

    @property
    def query_fingerprint(self) -> str:
        return f"{self.fingerprint}:{self.query_prompt!r}"

    @cached_property
    def tokenizer(self) -> Any:
        """A copy of the model's; None where that is not one of the tokenizers library."""
        found = getattr(self._loaded.tokenizer, "backend_tokenizer", None)
        if found is None:
            return None
        copied = type(found).from_str(found.to_str())
        # What a model is shipped with need not be what it is run with.
        copied.no_truncation()
        copied.no_padding()
        return copied

    @cached_property
    def max_tokens(self) -> int | None:
        """The model's ``max_seq_length``, less what its prompt and special tokens take of it."""
        model = self._loaded
        most: int | None = model.max_seq_length
        tokenizer = self.tokenizer
        if most is None or tokenizer is None:
            return most
        prompt = self.document_prompt
        if prompt is None:
            prompts = {**model.prompts, None: ""}
            names = [*DOCUMENT_PROMPTS, model.default_prompt_name]
            prompt = next((prompts[name] for name in names if name in prompts), "")
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        taken: int = len(tokenizer.encode(prompt, add_special_tokens=False)) + special
        return max(1, most - taken)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        vectors: Vectors = self._loaded.encode_document(
            list(texts), prompt=self.document_prompt, batch_size=self.forward_size, **self._plainly
        )
        return vectors

    def embed_query(self, text: str) -> Sequence[float]:
        vectors = self._loaded.encode_query([text], prompt=self.query_prompt, **self._plainly)
        query: Sequence[float] = vectors[0]
        return query

    @property
    def _plainly(self) -> dict[str, bool]:
        return {"normalize_embeddings": self.normalize, "show_progress_bar": False}

    @property
    def _loaded(self) -> Any:
        with self._loading:
            return self._model

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImproperlyConfigured(
                "SentenceTransformerEmbedder needs the extra embedsync[local]:"
                " pip install 'sentence-transformers>=5'"
            ) from error
        started = time.monotonic()
        try:
            with without_bars():
                model = SentenceTransformer(self.model, **self.options)
        except (OSError, TypeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"The model {self.model!r} could not be loaded: {error}"
            ) from error
        found = model.get_embedding_dimension()
        if found is not None and found != self.dimensions:
            raise MismatchError(
                f"The model {self.model!r} has {found} dimensions and EMBEDSYNC_EMBEDDERS declares"
                f" {self.dimensions}. Set DIMENSIONS to {found} and run makemigrations."
            )
        logger.info(
            "loaded %s on %s in %.1f s", self.model, model.device, time.monotonic() - started
        )
        return model
