"""Film texts and their real vectors, kept in ``.cache`` because they take half an hour to make.

Run as a script it embeds all that is missing: ``.venv/bin/python bench/films.py [--threads N]``.
"""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from common import PROJECT, arguments, progress

from embedsync.declaration import declaration_of
from embedsync.embedders import get_embedder
from embedsync.text import digest, render
from example_project.films.models import Movie

FULL = PROJECT.parent / "shared" / "data" / "movies" / "movies.jsonl.gz"
QUERIES = FULL.with_name("queries.jsonl")
SHIPPED = PROJECT / "example_project" / "films" / "data" / "films.jsonl"
CACHE = PROJECT / ".cache" / "films-minilm.npy"
ROW = np.dtype([("digest", "V16"), ("vector", "f4", 384)])
CHUNK = 1024


def films() -> list[Movie]:
    """All films there are, unsaved, in an order that makes any first n of them a fair sample."""
    content = gzip.decompress(FULL.read_bytes()) if FULL.exists() else SHIPPED.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    random.Random(1).shuffle(rows)
    return [film(row) for row in rows]


def film(row: dict[str, Any]) -> Movie:
    return Movie(
        title=row["title"][:300],
        year=row["year"],
        cast=", ".join(row["cast"]),
        plot_summary=row.get("extract") or row["plot_summary"],
        href=row.get("href", ""),
    )


def repeated(number: int) -> list[Movie]:
    """So many films: the real ones, and then again with a number behind title and text."""
    return list(islice(_repeated(films()), number))


def _repeated(rows: list[Movie]) -> Iterator[Movie]:
    yield from rows
    for turn in count(2):
        for row in rows:
            yield Movie(
                title=f"{row.title[:280]} {turn}",
                year=row.year,
                cast=row.cast,
                plot_summary=f"{row.plot_summary} {turn}",
            )


def texts(rows: Sequence[Movie]) -> list[str]:
    """What a worker embeds of films."""
    declaration = declaration_of(Movie.embedding.model)
    return [
        render(declaration.template, {name: getattr(row, name) for name in declaration.fields})
        for row in rows
    ]


def queries() -> list[str]:
    """Search texts of people, where the full data is; else none."""
    if not QUERIES.exists():
        return []
    return [json.loads(line)["query"] for line in QUERIES.read_text("utf-8").splitlines()]


def plots() -> list[str]:
    """The first sentences of the shipped films: plots in other words than the full data's."""
    shipped = [json.loads(line)["plot_summary"] for line in SHIPPED.read_text("utf-8").splitlines()]
    return [plot.split(". ")[0] for plot in shipped]


class VectorCache:
    """Vectors of texts by the real model, by the digest of the text."""

    def __init__(self, file: Path = CACHE) -> None:
        self.file = file
        self.vectors: dict[bytes, np.ndarray] = {}
        if file.exists():
            stored = np.load(file)
            self.vectors = {bytes(row["digest"]): row["vector"] for row in stored}

    def missing(self, wanted: Sequence[str]) -> list[str]:
        return [text for text in wanted if key(text) not in self.vectors]

    def get(self, wanted: Sequence[str]) -> np.ndarray:
        """The vectors, ``(len(wanted), 384)``; those that are missing are embedded and kept."""
        missing = self.missing(wanted)
        embedder = get_embedder("default")
        for start in range(0, len(missing), CHUNK):
            progress(f"embedding: {start} of {len(missing)} films")
            part = missing[start : start + CHUNK]
            # The library sorts by length within a call, and takes 16 at a time.
            vectors = np.asarray(embedder.embed_documents(part), dtype="f4")
            self.vectors.update(zip(map(key, part), vectors, strict=True))
            self.save()
        return np.stack([self.vectors[key(text)] for text in wanted])

    def save(self) -> None:
        rows = np.empty(len(self.vectors), dtype=ROW)
        rows["digest"] = np.array(list(self.vectors), dtype="V16")
        rows["vector"] = np.stack(list(self.vectors.values()))
        self.file.parent.mkdir(exist_ok=True)
        # Beside it first, so that a run that is stopped leaves a whole file.
        beside = self.file.with_name(f"{self.file.stem}.part.npy")
        np.save(beside, rows)
        beside.replace(self.file)


def key(text: str) -> bytes:
    return digest("all-MiniLM-L6-v2", text)


def main() -> None:
    import torch

    parser = arguments(__doc__ or "")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vectors = VectorCache().get(texts(films()))
    print(f"{len(vectors)} vectors in {CACHE.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
