"""Local models through the sentence-transformers library (the extra ``embedsync[local]``)."""

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.base import Embedder, MismatchError, Vectors
from embedsync.embedders.batching import batches
from embedsync.embedders.keys import unsaid
from embedsync.embedders.loading import loading
from embedsync.embedders.usage import tokens_of

BACKENDS = ("torch", "onnx", "openvino")
TOKENS = {"token", "use_auth_token"}
# Options of the library that decide no vector.
WITHOUT_EFFECT = {
    *TOKENS,
    "cache_folder",
    "similarity_fn_name",
    "model_card_data",
    "trust_remote_code",
    "proxies",
}
AGAIN_SECONDS = 30.0  # until a model that could not be loaded is tried again
SAMPLES, SAMPLE_BYTES = 256, 16_384
DOCUMENT_PROMPTS = (
    "document",
    "passage",
    "corpus",
)  # the first that a model has is put before texts


def digest_of(directory: Path) -> str:
    """Changes with the files of a model, of which large ones are read here and there only."""
    content = hashlib.blake2b(digest_size=16)
    for path in sorted(directory.rglob("*")):
        # As .git, and .cache of the hub's client, which notes the time of a download.
        is_hidden = any(part.startswith(".") for part in path.relative_to(directory).parts[:-1])
        if path.is_file() and not is_hidden:
            size = path.stat().st_size
            content.update(f"{path.relative_to(directory)} {size}".encode())
            with path.open("rb") as file:
                # In each layer, so that a model that was trained on is another.
                for start in range(0, max(size, 1), max(size // SAMPLES, SAMPLE_BYTES)):
                    file.seek(start)
                    content.update(file.read(SAMPLE_BYTES))
    return content.hexdigest()


def fingerprint_of(
    name: str, dimensions: int, document_prompt: str | None, normalize: bool | None
) -> str:
    """The fingerprint of a model's vectors; an export of it in float32 has the same."""
    return f"sentence-transformers:{name}:{dimensions}:{document_prompt!r}:{normalize}"


def without_keys(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Options in order, without those that decide no vector, as secrets do not."""
    return [
        (name, without_keys(value) if isinstance(value, Mapping) else value)
        for name, value in sorted(options.items())
        if name not in WITHOUT_EFFECT
    ]


def secrets_of(options: Mapping[str, Any]) -> Iterator[str]:
    """Tokens of the hub and passwords of proxies, wherever they are among options."""
    for name, value in options.items():
        if name == "proxies" and isinstance(value, Mapping):
            yield from (urlsplit(str(proxy)).password or "" for proxy in value.values())
        elif isinstance(value, Mapping):
            yield from secrets_of(value)
        elif name in TOKENS and isinstance(value, str):
            yield value.strip()


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

    Options that decide the vectors: ``query_prompt`` and ``document_prompt`` are put before each
    text (default: the model's own); ``normalize`` scales vectors to length 1, or does not (default:
    what the model does itself); ``truncate_dim`` cuts those of a Matryoshka model, and scales what
    is left; ``revision`` is a commit, tag or branch of the hub; ``dtype``
    is that of the weights, "float32", "float16" or "bfloat16" (default: as they are stored).

    Options of speed: ``forward_size`` is how many texts go through the network at once,
    ``batch_size`` how many a worker gives to one call; ``device`` is torch's name of one;
    ``threads`` are torch's, for the whole process; ``backend`` is "torch", or "onnx" or "openvino"
    by way of the library optimum.

    ``local_files_only`` asks the hub for nothing. All others go to ``SentenceTransformer()`` as
    they are.
    """

    counts_tokens = True

    def __init__(
        self,
        *,
        model: str,
        dimensions: int,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        forward_size: int = 16,
        batch_size: int = 128,
        device: str | None = None,
        threads: int | None = None,
        backend: str = "torch",
        local_files_only: bool = False,
        **options: Any,
    ) -> None:
        if not model:
            raise ImproperlyConfigured(
                "SentenceTransformerEmbedder needs MODEL: the name or the directory of a model."
            )
        if str(model).startswith(("/", "./", "../", "~")) and not Path(model).is_dir():
            raise ImproperlyConfigured(f"MODEL: there is no directory {str(model)!r}.")
        if backend not in BACKENDS:
            raise ImproperlyConfigured(f"backend is {backend!r}: name one of {BACKENDS}.")
        if truncate_dim is not None and truncate_dim != dimensions:
            raise ImproperlyConfigured(
                f"truncate_dim is {truncate_dim} and DIMENSIONS {dimensions}: they must be equal."
            )
        super().__init__(model=str(model), dimensions=dimensions)
        self.query_prompt = query_prompt
        self.document_prompt = document_prompt
        self.normalize = normalize
        self.truncate_dim = truncate_dim
        self.revision = revision
        self.dtype = dtype
        self.forward_size = forward_size
        self.batch_size = batch_size
        self.device = device
        self.threads = threads
        self.backend = backend
        self.local_files_only = local_files_only
        if isinstance(token := options.get("token"), str):
            # A secret's file ends with a newline, which no header may have.
            options["token"] = token.strip()
        self.options = options
        self._loading = threading.Lock()
        self._failed = ""
        self._again_at = 0.0

    @cached_property
    def name(self) -> str:
        """What of the model's name and options decides the vectors, besides the dimensions."""
        directory = Path(self.model)
        # A directory lies elsewhere on another machine: what counts is what is in it.
        name = digest_of(directory) if directory.is_dir() else self.model
        if self.revision is not None:
            name = f"{name}@{self.revision}"
        if self.dtype not in (None, "float32"):
            name = f"{name}:{self.dtype}"
        if self.backend != "torch":
            name = f"{name}:{self.backend}"
        # Prompts, an adapter, a file in int8, and whatever else the library may know.
        others = without_keys(self.options)
        return f"{name}:{others}" if others else name

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.name, self.dimensions, self.document_prompt, self.normalize)

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
        most: int | None = self._loaded.max_seq_length
        tokenizer = self.tokenizer
        if most is None or tokenizer is None:
            return most
        return max(1, most - len(tokenizer.encode(self.prompt_of_documents)))

    @property
    def prompt_of_documents(self) -> str:
        """What is put before texts: the option's, or else the model's own."""
        return self._prompt(self.document_prompt, DOCUMENT_PROMPTS)

    @property
    def prompt_of_queries(self) -> str:
        """What is put before search texts: the option's, or else the model's own."""
        return self._prompt(self.query_prompt, ("query",))

    def _prompt(self, given: str | None, names: tuple[str, ...]) -> str:
        if given is not None:
            return given
        model = self._loaded
        prompts = {**model.prompts, None: ""}
        return next((prompts[n] for n in (*names, model.default_prompt_name) if n in prompts), "")

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        model, prompt = self._loaded, self.prompt_of_documents
        lengths = self._lengths([prompt + text for text in texts])
        self.usage.add(tokens=sum(lengths))
        found: list[Any] = [None] * len(texts)
        for batch in batches(lengths, rows=self.forward_size):
            rows = model.encode_document(
                [texts[position] for position in batch],
                prompt=prompt,
                batch_size=len(batch),
                **self._plainly,
            )
            for position, row in zip(batch, rows, strict=True):
                found[position] = row
        vectors: Any = np.stack(found)
        return vectors  # type: ignore[no-any-return]

    def _lengths(self, texts: list[str]) -> list[int]:
        """How many tokens of each text the model reads; about, where they cannot be counted."""
        tokenizer, most = self.tokenizer, self._loaded.max_seq_length
        if tokenizer is None:
            return [tokens_of([text]) for text in texts]
        return [min(len(text), most or len(text)) for text in tokenizer.encode_batch_fast(texts)]

    def embed_query(self, text: str) -> Sequence[float]:
        vectors = self._loaded.encode_query([text], prompt=self.query_prompt, **self._plainly)
        query: Sequence[float] = vectors[0]
        return query

    @property
    def _plainly(self) -> dict[str, bool]:
        scaled = self._is_cut if self.normalize is None else self.normalize
        return {"normalize_embeddings": scaled, "show_progress_bar": False}

    @property
    def _loaded(self) -> Any:
        with self._loading:
            # Each search would wait in turn for the hub's client to give up, a minute or more.
            if self._failed and time.monotonic() < self._again_at:
                raise ImproperlyConfigured(self._failed)
            try:
                return self._model
            except ImproperlyConfigured as error:
                self._failed, self._again_at = str(error), time.monotonic() + AGAIN_SECONDS
                raise

    @cached_property
    def _model(self) -> Any:
        with unsaid(*secrets_of(self.options)), loading(self.model) as said:
            try:
                import torch
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise ImproperlyConfigured(
                    "SentenceTransformerEmbedder needs the extra embedsync[local]:"
                    f" pip install 'sentence-transformers>=5.7' ({error})"
                ) from error
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            with without_bars():
                model = SentenceTransformer(self.model, **self._arguments)
            with model.truncate_embeddings(None):
                whole = model.get_embedding_dimension()
            # What is cut of a vector of length 1 is shorter; the whole one is as the model has it.
            self._is_cut = self.truncate_dim is not None and self.truncate_dim != whole
            found = model.get_embedding_dimension()
            if found is not None and found != self.dimensions:
                raise MismatchError(
                    f"The model {self.model!r} has {found} dimensions and EMBEDSYNC_EMBEDDERS"
                    f" declares {self.dimensions}. Set DIMENSIONS to {found} and run"
                    " makemigrations."
                )
            said += [self._origin, str(model.device), str(model.dtype), self.backend]
        return model

    @property
    def _arguments(self) -> dict[str, Any]:
        arguments = {
            **self.options,
            "truncate_dim": self.truncate_dim,
            "revision": self.revision,
            "device": self.device,
            "backend": self.backend,
            "local_files_only": self.local_files_only,
        }
        if self.dtype is not None:
            kwargs = self.options.get("model_kwargs", {})
            arguments["model_kwargs"] = {**kwargs, "dtype": self.dtype}
        return arguments

    @property
    def _origin(self) -> str:
        if Path(self.model).is_dir():
            return f"from the directory {self.model}"
        return f"from the hub or its cache, revision {self.revision or 'main'}"
