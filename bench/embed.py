"""What local embedders give for a CPU second, against plain ``SentenceTransformer.encode(texts)``.

Each side embeds the same films in one process with one thread, in turn; the embedders get them as a
worker gives them. Beside the speed: how near the vectors are to the library's own, and how many of
each film's ten nearest are the same. Last, two processes of one thread each, at once.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, arguments, cache, progress, report
from films import films, repeated, texts

from embedsync.conf import settings
from embedsync.embedders import Embedder
from embedsync.embedders.export import export
from embedsync.embedders.onnx import FLOAT32, INT8, OnnxEmbedder
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder

NEAREST = 10
MARK_EXACT, MARK_QUANTISED, MARK_COSINE = 1.25, 2.0, 0.997


def embed(embedder: Embedder, wanted: Sequence[str]) -> np.ndarray:
    """Vectors, ``(len(wanted), dimensions)``, by the calls that a worker makes for one claim."""
    order = sorted(range(len(wanted)), key=lambda place: len(wanted[place]), reverse=True)
    found = np.empty((len(wanted), embedder.dimensions), dtype="f4")
    for start in range(0, len(order), embedder.batch_size):
        part = order[start : start + embedder.batch_size]
        found[part] = embedder.embed_documents([wanted[place] for place in part])
    return found


def per_cpu_second(action: Callable[[], Any], rows: int) -> tuple[float, Any]:
    started = time.process_time()
    made = action()
    return rows / (time.process_time() - started), made


def nearest(vectors: np.ndarray) -> list[set[int]]:
    """For each vector the places of its nearest others."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -2)
    return [set(row) for row in np.argsort(-likeness, axis=1)[:, :NEAREST]]


def measure(
    sides: dict[str, Callable[[], Any]], rows: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Rows a CPU second of each side in each round, after one to warm up, and its vectors."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    vectors = {}
    for number in range(rounds):
        # Each order in turn, so that a machine that tires or recovers harms all alike.
        for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
            rate, vectors[side] = per_cpu_second(sides[side], rows)
            rates[side].append(rate)
            progress(f"round {number + 1} of {rounds}, {side}: {rate:.1f} rows a CPU second")
    return rates, vectors


def together(directory: Path, rows: int, processes: int, threads: int) -> float:
    """Rows a second of so many processes at once, from when all have loaded their model."""
    command = [sys.executable, __file__, "--serve", str(directory), "--rows", str(rows)]
    command += ["--threads", str(threads)]
    return rows * processes / seconds_at_once(command, processes)


def seconds_at_once(command: Sequence[str], processes: int) -> float:
    """How long processes take that all begin when each has said that it is ready."""
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    started = time.perf_counter()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate()
    return time.perf_counter() - started


def serve(directory: str, rows: int, threads: int) -> None:
    """One of the processes: it says when it is ready, and embeds when it is told to."""
    embedder = exported(Path(directory), threads=threads)
    wanted = texts(repeated(rows))
    embedder.embed_documents(wanted[:4])
    print("ready", flush=True)
    sys.stdin.readline()
    embed(embedder, wanted)


def exported(directory: Path, *, threads: int = 1) -> OnnxEmbedder:
    return OnnxEmbedder(model=str(directory), dimensions=384, threads=threads)


def compare(rows: int, rounds: int, folder: Path) -> tuple[list[Figure], list[str]]:
    from sentence_transformers import SentenceTransformer

    model = settings.embedder("default").model
    wanted = texts(repeated(rows))
    torch_embedder = SentenceTransformerEmbedder(model=model, dimensions=384, threads=1)
    sides: dict[str, Callable[[], Any]] = {}
    for precision in (FLOAT32, INT8):
        progress(f"exporting in {precision}")
        export(torch_embedder, folder / precision, precision=precision, sample=32)
        sides[precision] = partial(embed, exported(folder / precision), wanted)
    bare = SentenceTransformer(model, device="cpu")
    sides = {
        "plain": partial(bare.encode, wanted, show_progress_bar=False),
        "torch": partial(embed, torch_embedder, wanted),
        **sides,
    }
    few = wanted[:16]
    bare.encode(few, show_progress_bar=False)
    for side in list(sides)[1:]:
        embed(sides[side].args[0], few)  # type: ignore[attr-defined]
    rates, vectors = measure(sides, rows, rounds)
    plain = vectors["plain"] / np.linalg.norm(vectors["plain"], axis=1, keepdims=True)
    true = nearest(plain)
    notes = [
        f"{rows} of {len(films())} films of {statistics.mean(map(len, wanted)):.0f} characters in"
        f" the mean, {rounds} rounds, one thread; rates are rows a second of the process's CPU",
        f"plain encode(): {statistics.median(rates['plain']):.1f} rows a CPU second",
    ]
    cosines: dict[str, Any] = {}
    for side in ("torch", FLOAT32, INT8):
        cosines[side] = (vectors[side] * plain).sum(axis=1)
        same = statistics.mean(
            len(a & b) / NEAREST for a, b in zip(true, nearest(vectors[side]), strict=True)
        )
        notes.append(
            f"{side}: {statistics.median(rates[side]):.1f} rows a CPU second, cosine to float32"
            f" {cosines[side].mean():.6f} in the mean and {cosines[side].min():.6f} at least,"
            f" {same:.3f} of the ten nearest the same"
        )
    ratios = {
        side: [one / other for one, other in zip(rates[side], rates["plain"], strict=True)]
        for side in cosines
    }
    return [
        Figure("exact_ratio", ratios[FLOAT32], at_least=MARK_EXACT),
        Figure("exact_cosine", [float(cosines[FLOAT32].min())], at_least=0.9999, digits=6),
        Figure("quantised_ratio", ratios[INT8], at_least=MARK_QUANTISED),
        Figure("quantised_cosine", [float(cosines[INT8].mean())], at_least=MARK_COSINE, digits=4),
        Figure("torch_ratio", ratios["torch"]),
    ], notes


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", help="of itself, for the processes at once")
    parser.add_argument("--threads", type=int, default=1, help="with --serve")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.rows, options.threads)
        return
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        figures, notes = compare(options.rows, options.rounds, Path(folder))
        directory = Path(folder) / FLOAT32
        progress("two processes of one thread, then one process of two")
        both = [together(directory, options.rows, 2, 1) for _ in range(options.rounds)]
        one = [together(directory, options.rows, 1, 2) for _ in range(options.rounds)]
    figures += [
        Figure("two_core_rate", both, unit="rows/s", digits=1),
        Figure("two_threads_rate", one, unit="rows/s", digits=1),
    ]
    report(figures, notes, as_json=options.json)


if __name__ == "__main__":
    main()
