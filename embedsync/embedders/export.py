"""Exports: a sentence-transformers model as files for OnnxEmbedder, proven to give its vectors."""

import copy
import json
import pydoc_data.topics
import tempfile
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.onnx import (
    DESCRIPTION,
    FLOAT32,
    GRAPH,
    INT8,
    LARGEST_WEIGHT,
    PROBE,
    PROBE_WIDTH,
    SAME_SPACE,
    TOKENIZER,
    UNSIGNED,
    Description,
    OnnxEmbedder,
    digest_of_files,
)
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder

# What a graph can hold; all else that a model may have does more than arithmetic with tokens.
MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 17
LARGEST = 2_000_000_000  # bytes of weights; more would lie in files beside the graph, undigested
LEAST = {FLOAT32: SAME_SPACE, INT8: 0.99}
ODD = [
    "a",
    "\U0001f916",
    "naïve café, “quoted”",
    "日本語のテキスト",
    "  spaces\n\n around ",
    "x" * 9000,
]


class ExportError(Exception):
    """The model was not exported; nothing was written."""


def export(
    embedder: SentenceTransformerEmbedder,
    directory: Path,
    *,
    precision: str = FLOAT32,
    sample: int = 64,
    least: float | None = None,
    force: bool = False,
) -> Description:
    """Write an embedder's model to ``directory`` for ``OnnxEmbedder``, and say what was written.

    First the vectors of ``sample`` texts and of some odd ones are compared. In float32 the cosine
    of each must be ``least`` or more, in int8 that of the mean. A directory that exists is replaced
    with ``force`` only.

    Raises ``ExportError`` where they differ or nothing can be written, and ``ImproperlyConfigured``
    where the model cannot be loaded or something is not installed.
    """
    if directory.exists() and not force:
        raise ExportError(f"{directory} exists: name another directory, or add --force.")
    if directory.exists() and not (directory / DESCRIPTION).exists():
        raise ExportError(f"{directory} is no export, and is not replaced: name another directory.")
    made_with = versions()  # of what is missing it says what to install
    model = supported(embedder)
    texts = sample_texts(sample, model.max_seq_length)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as beside:
        made = Path(beside) / "made"
        made.mkdir()
        write_tokenizer(model, made / TOKENIZER)
        write_graph(model, made / GRAPH, smooth_on=texts if precision == INT8 else ())
        if precision == INT8:
            quantise(made / GRAPH)
        description = describe(embedder, model, made, precision, made_with)
        write_description(made, description)
        cosines = agreement(embedder, made, texts)
        cosine = float(cosines.min() if precision == FLOAT32 else cosines.mean())
        wanted = LEAST[precision] if least is None else least
        # NaN fails it, too.
        if not cosine >= wanted:
            raise ExportError(
                f"The vectors of the export are not those of {embedder.model!r}: cosine"
                f" {cosine:.6f}, and {wanted} is asked for. Nothing was written."
            )
        description = replace(description, cosine=cosine)
        write_description(made, description)
        if directory.exists():
            directory.rename(Path(beside) / "old")
        made.rename(directory)
    return description


def supported(embedder: SentenceTransformerEmbedder) -> Any:
    """The loaded model; raises ``ExportError`` where a graph cannot do what it does."""
    if embedder.backend != "torch":
        raise ExportError(f"backend is {embedder.backend!r}: a model is exported from torch.")
    model = embedder._loaded
    size = 4 * sum(weights.numel() for weights in model.parameters())
    if size > LARGEST:
        raise ExportError(
            f"{embedder.model!r} has {size / 1e9:.1f} GB of weights in float32, and only"
            f" {LARGEST / 1e9:.0f} GB can be exported: that is what a file of ONNX can hold."
        )
    for module in model:
        kind = type(module).__name__
        if kind not in MODULES:
            raise ExportError(
                f"{embedder.model!r} has a module {kind}, and only these can be exported:"
                f" {', '.join(MODULES)}."
            )
        if not getattr(module, "include_prompt", True):
            raise ExportError(
                f"{embedder.model!r} leaves its prompt out of Pooling, which cannot be exported."
            )
    features = set(model.preprocess(["a"])) - {"modality"}
    if not features <= set(INPUTS) or embedder.tokenizer is None:
        raise ExportError(
            f"{embedder.model!r} reads {', '.join(sorted(features))}; only {', '.join(INPUTS)} of a"
            " fast tokenizer can be exported."
        )
    if model.tokenizer.padding_side != "right" or model.max_seq_length is None:
        raise ExportError(
            f"{embedder.model!r} pads on the left, or reads texts of any length: it cannot be"
            " exported."
        )
    return model


def sample_texts(number: int, tokens: int) -> list[str]:
    """English prose, of one word up to twice as much as the model reads, and some odd texts."""
    # Python's own help: it is wherever Python is, and real language.
    words = " ".join(pydoc_data.topics.topics.values()).split()
    texts, start = [], 0
    for place in range(number):
        length = round((2 * tokens) ** (place / max(number - 1, 1)))
        start = (start + length) % max(len(words) - length, 1)
        texts.append(" ".join(words[start : start + length]))
    return texts + ODD


def write_tokenizer(model: Any, file: Path) -> None:
    """The tokenizer as the model uses it, with what it cuts off and how it pads."""
    given = model.tokenizer
    tokenizer = type(given.backend_tokenizer).from_str(given.backend_tokenizer.to_str())
    tokenizer.enable_truncation(model.max_seq_length, direction=given.truncation_side)
    tokenizer.enable_padding(pad_id=given.pad_token_id, pad_token=given.pad_token)
    tokenizer.save(str(file))


def write_graph(model: Any, file: Path, *, smooth_on: Any = ()) -> None:
    """All modules as one graph, from token ids to vectors ``(rows, dimensions)``."""
    import torch

    class Graph(torch.nn.Module):
        def __init__(self, modules: list[torch.nn.Module], names: list[str]) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(modules)
            self.names = names

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            features: Any = dict(zip(self.names, tensors, strict=True))
            for part in self.parts:
                features = part(features)
            vectors: torch.Tensor = features["sentence_embedding"]
            return vectors

    # A copy, since the embedder's own may be in use, on another device, and in other precision.
    model = copy.deepcopy(model).cpu().float().eval()
    # onnxruntime knows the plain form of attention, and puts its own in its place.
    model[0].model.set_attn_implementation("eager")
    if smooth_on:
        smooth(model, smooth_on)
    features = model.preprocess(["a text", "and another one, which is longer"])
    names = [name for name in INPUTS if name in features]
    axes = {name: {0: "rows", 1: "tokens"} for name in names}
    with warnings.catch_warnings():
        # Of what is fixed in the trace; that it is right for all lengths is what the proof shows.
        warnings.simplefilter("ignore")
        # The newer exporter needs onnx and onnxscript besides torch.
        torch.onnx.export(
            Graph(list(model), names).eval(),
            tuple(features[name] for name in names),
            str(file),
            input_names=names,
            output_names=["vectors"],
            dynamic_axes={**axes, "vectors": {0: "rows"}},
            opset_version=OPSET,
            dynamo=False,
        )


def smooth(model: Any, texts: Any) -> None:
    """Move a part of what is large in the inputs of layers into their weights, as SmoothQuant does.

    The products stay what they were. But int8 spans the range of all inputs of a layer, and some of
    them are a hundred times as large as others, which would be left with a few steps.
    Source: Xiao et al., 2023, with half of the range moved.
    """
    import torch

    class Smoothed(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module, scale: torch.Tensor) -> None:
            super().__init__()
            self.layer = layer
            self.scale = torch.nn.Parameter(scale, requires_grad=False)

        def forward(self, inputs: torch.Tensor) -> Any:
            return self.layer(inputs * self.scale)

    largest: dict[str, torch.Tensor] = {}

    def look(name: str) -> Any:
        def hook(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            found = arguments[0].abs().flatten(0, -2).amax(0)
            largest[name] = torch.maximum(found, largest.get(name, found))

        return hook

    layers = {n: m for n, m in model[0].named_modules() if isinstance(m, torch.nn.Linear)}
    hooks = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    model.encode(list(texts), batch_size=8, show_progress_bar=False)
    for hook in hooks:
        hook.remove()
    for name, found in largest.items():
        layer = layers[name]
        root = found.clamp(min=1e-5).sqrt()
        scale = root / root.median()
        with torch.no_grad():
            layer.weight.mul_(scale)
        parent, _, leaf = name.rpartition(".")
        setattr(model[0].get_submodule(parent), leaf, Smoothed(layer, 1 / scale))


def quantise(file: Path) -> None:
    """The products with weights in int8, the ranges of their inputs found as they come."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ImproperlyConfigured(
            "An export in int8 needs the extra embedsync[export]: pip install onnx onnxruntime"
        ) from error
    whole = file.rename(file.with_suffix(".float32"))
    # The same numbers twice: see ``keeps_sums()``.
    for name, weights in ((GRAPH, QuantType.QInt8), (UNSIGNED, QuantType.QUInt8)):
        quantize_dynamic(
            whole,
            file.with_name(name),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=weights,
            extra_options={"WeightSymmetric": False},
        )
    whole.unlink()
    write_probe(file.with_name(PROBE))


def write_probe(file: Path) -> None:
    """The product that tells what a machine does with large sums."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.full((PROBE_WIDTH, PROBE_WIDTH), LARGEST_WEIGHT, dtype="int8")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["inputs", "weights"], ["sums"])],
        "probe",
        [helper.make_tensor_value_info("inputs", TensorProto.UINT8, [1, PROBE_WIDTH])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [1, PROBE_WIDTH])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = helper.make_opsetid("", OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), file)


def describe(
    embedder: SentenceTransformerEmbedder,
    model: Any,
    directory: Path,
    precision: str,
    made_with: dict[str, str],
) -> Description:
    """What is to be said of the files in ``directory``."""
    with model.truncate_embeddings(None):
        dimensions = model.get_embedding_dimension()
    return Description(
        model=Path(embedder.model).name if Path(embedder.model).is_dir() else embedder.model,
        name=embedder.name,
        query_option=embedder.query_prompt,
        document_option=embedder.document_prompt,
        normalize=embedder.normalize,
        query_prompt=embedder.prompt_of_queries,
        document_prompt=embedder.prompt_of_documents,
        dimensions=dimensions,
        precision=precision,
        digest=digest_of_files(directory),
        cosine=0.0,
        made_with=made_with,
    )


def versions() -> dict[str, str]:
    """Of what makes an export. Raises ``ImproperlyConfigured`` where it is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import torch
    except ImportError as error:
        raise ImproperlyConfigured(
            "An export needs the extra embedsync[export]: pip install onnx onnxruntime"
        ) from error
    return {"torch": str(torch.__version__), "onnxruntime": str(onnxruntime.__version__)}


def write_description(directory: Path, description: Description) -> None:
    text = json.dumps(asdict(description), ensure_ascii=False, indent=2)
    (directory / DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")


def agreement(embedder: SentenceTransformerEmbedder, directory: Path, texts: list[str]) -> Any:
    """The cosine of each text's two vectors, as a document and as a query; less where their lengths
    differ, too.
    """
    import numpy as np

    exported = OnnxEmbedder(
        model=str(directory), dimensions=embedder.dimensions, truncate_dim=embedder.truncate_dim
    )
    both = []
    for made in (embedder, exported):
        documents = np.asarray(made.embed_documents(texts), dtype="float64")
        queries = np.asarray([made.embed_query(text) for text in texts], dtype="float64")
        both.append(np.concatenate([documents, queries]))
    one, other = both
    apart = ((one - other) ** 2).sum(axis=1)
    return 1 - apart / (2 * np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
