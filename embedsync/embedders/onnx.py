"""Exported models on onnxruntime and tokenizers alone (the extra ``embedsync[onnx]``): no torch.

``manage.py embed_export`` makes the files; ``export.py`` says how.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.base import Embedder, Vectors
from embedsync.embedders.batching import batches
from embedsync.embedders.loading import loading
from embedsync.embedders.sentence_transformers import fingerprint_of

SAME_SPACE = 0.9999  # cosine to the vectors of the embedder that an export was made from
GRAPH, TOKENIZER, DESCRIPTION = "model.onnx", "tokenizer.json", "embedsync.json"
FLOAT32, INT8 = "float32", "int8"
# Of an export in int8: the graph with unsigned weights, and a product that has the largest sums.
UNSIGNED, PROBE = "unsigned.onnx", "probe.onnx"
LARGEST_INPUT, LARGEST_WEIGHT, PROBE_WIDTH = 255, 127, 64


@dataclass(frozen=True)
class Description:
    """What ``embedsync.json`` says of the files beside it.

    ``name``, ``query_option``, ``document_option`` and ``normalize`` are the exported embedder's:
    its fingerprint is made of them. The prompts are what it puts before texts.
    """

    model: str
    name: str
    query_option: str | None
    document_option: str | None
    normalize: bool | None
    query_prompt: str
    document_prompt: str
    dimensions: int
    precision: str
    digest: str
    cosine: float
    made_with: dict[str, str]

    @classmethod
    def read(cls, directory: Path) -> "Description":
        """Of an export's directory. Raises ``ImproperlyConfigured`` where there is none."""
        try:
            return cls(**json.loads((directory / DESCRIPTION).read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"MODEL: {str(directory)!r} is no export of this version of embedsync ({error})."
                " Make one: manage.py embed_export ALIAS DIRECTORY."
            ) from error


def digest_of_files(directory: Path) -> str:
    """Changes with the graphs and with the tokenizer of an export."""
    content = hashlib.blake2b(digest_size=16)
    more = [name for name in (UNSIGNED, PROBE) if (directory / name).exists()]
    for name in (GRAPH, TOKENIZER, *more):
        with (directory / name).open("rb") as file:
            content.update(hashlib.file_digest(file, "blake2b").digest())
    return content.hexdigest()


def keeps_sums(directory: Path) -> bool:
    """Whether this machine adds up the products of an export's signed weights in full.

    x86 without VNNI cuts their sums off in 16 bits, which would be other vectors. There the graph
    with the same weights as unsigned numbers makes the same vectors, in twice the time that the
    signed ones take with VNNI.
    """
    import numpy as np

    inputs = np.full((1, PROBE_WIDTH), LARGEST_INPUT, dtype="uint8")
    (sums,) = session_of(directory / PROBE, 1).run(None, {"inputs": inputs})
    return bool((sums == LARGEST_INPUT * LARGEST_WEIGHT * PROBE_WIDTH).all())


def session_of(graph: Path, threads: int) -> Any:
    """A session of onnxruntime on so many threads of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class OnnxEmbedder(Embedder):
    """A model that ``manage.py embed_export`` has exported, by its directory.

    Options: ``threads`` is how many cores one call takes; ``batch_tokens`` how many tokens go
    through the network at once, padding included; ``batch_size`` how many texts a worker gives to
    one call; ``truncate_dim`` cuts the vectors of a Matryoshka model, and scales them to length 1
    again.

    An export in float32 has the fingerprint of the embedder that it was made from: both may serve
    and search one sidecar. One in int8, or that was let pass with less, has its own.
    """

    counts_tokens = True

    def __init__(
        self,
        *,
        model: str,
        dimensions: int,
        threads: int = 1,
        batch_tokens: int = 512,
        batch_size: int = 128,
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__(model=str(model), dimensions=dimensions)
        self.description = Description.read(Path(self.model))
        most = self.description.dimensions
        if truncate_dim is not None and not 0 < truncate_dim <= most:
            raise ImproperlyConfigured(f"truncate_dim: {self.model!r} has {most} dimensions.")
        if dimensions != (truncate_dim or most):
            raise ImproperlyConfigured(
                f"DIMENSIONS is {dimensions}, and the vectors of {self.model!r} have"
                f" {truncate_dim or most}. Set DIMENSIONS to that, or truncate_dim to {dimensions}."
            )
        self.threads = threads
        self.batch_tokens = batch_tokens
        self.batch_size = batch_size
        self._loading = threading.Lock()

    @cached_property
    def fingerprint(self) -> str:
        about = self.description
        same = fingerprint_of(about.name, self.dimensions, about.document_option, about.normalize)
        if about.precision == FLOAT32 and about.cosine >= SAME_SPACE:
            return same
        return f"{same}:{about.precision}:{about.digest}"

    @property
    def query_fingerprint(self) -> str:
        return f"{self.fingerprint}:{self.description.query_option!r}"

    @cached_property
    def tokenizer(self) -> Any:
        _, cutting = self._loaded
        whole = type(cutting).from_str(cutting.to_str())
        whole.no_truncation()
        return whole

    @cached_property
    def max_tokens(self) -> int:
        """What the model reads, less what its prompt and special tokens take of it."""
        prompt = self.tokenizer.encode(self.description.document_prompt)  # with special tokens
        _, cutting = self._loaded
        most: int = cutting.truncation["max_length"]
        return max(1, most - len(prompt))

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        vectors, tokens = self._embed([self.description.document_prompt + text for text in texts])
        self.usage.add(tokens=tokens)
        return vectors

    def embed_query(self, text: str) -> Sequence[float]:
        vectors, _ = self._embed([self.description.query_prompt + text])
        return vectors[0]

    def _embed(self, texts: list[str]) -> tuple[Vectors, int]:
        """Vectors, ``(len(texts), dimensions)``, and how many tokens the model has read."""
        import numpy as np

        session, tokenizer = self._loaded
        wanted = [given.name for given in session.get_inputs()]
        encoded = tokenizer.encode_batch_fast(texts)
        lengths = [len(text) for text in encoded]
        # The range that int8 spans is that of a whole batch: with others in it, a text's vector
        # would depend on them.
        rows = len(texts) if self.description.precision == FLOAT32 else 1
        found: Any = np.empty((len(texts), self.description.dimensions), dtype="float32")
        pad = self._pad
        for batch in batches(lengths, rows=rows, tokens=self.batch_tokens):
            shape = len(batch), lengths[batch[0]]
            inputs = {
                "input_ids": np.full(shape, pad, dtype="int64"),
                "attention_mask": np.zeros(shape, dtype="int64"),
                "token_type_ids": np.zeros(shape, dtype="int64"),
            }
            for row, position in enumerate(batch):
                inputs["input_ids"][row, : lengths[position]] = encoded[position].ids
                inputs["attention_mask"][row, : lengths[position]] = 1
            (found[batch],) = session.run(None, {name: inputs[name] for name in wanted})
        found = found[:, : self.dimensions]
        is_cut = self.dimensions < self.description.dimensions
        if self.description.normalize or (is_cut and self.description.normalize is None):
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found, sum(lengths)

    @property
    def _loaded(self) -> tuple[Any, Any]:
        with self._loading:
            return self._model

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        """The session of onnxruntime, and the tokenizer, which cuts off what is not read."""
        directory, about = Path(self.model), self.description
        with loading(self.model) as said:
            try:
                import numpy  # noqa: F401
                import onnxruntime  # noqa: F401
                from tokenizers import Tokenizer
            except ImportError as error:
                raise ImproperlyConfigured(
                    "OnnxEmbedder needs the extra embedsync[onnx]:"
                    " pip install onnxruntime tokenizers numpy"
                ) from error
            if digest_of_files(directory) != about.digest:
                raise ImproperlyConfigured(
                    f"The files in {self.model!r} are not those that embed_export has written:"
                    " copy the directory again, or export anew."
                )
            is_cut = about.precision == INT8 and not keeps_sums(directory)
            session = session_of(directory / (UNSIGNED if is_cut else GRAPH), self.threads)
            tokenizer: Any = Tokenizer.from_file(str(directory / TOKENIZER))
            self._pad = tokenizer.padding["pad_id"]
            tokenizer.no_padding()
            said += [f"an export of {about.model}", about.precision, f"{self.threads} thread(s)"]
        return session, tokenizer
