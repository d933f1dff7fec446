"""A row's passages: what of its text each vector is of, and which of them are stored already."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pgvector import HalfVector, Vector

from embedsync.database import Names, binary_cursor, text_array
from embedsync.declaration import EmbeddingModel, declaration_of
from embedsync.splitter import Splitter
from embedsync.text import Rows, Stored, digest

NOTHING = Stored({}, True)


class Passages:
    """The passages of one row in order, their digests, and what is stored of the row.

    ``changed`` are the ordinals whose passage is not stored there; ``wanted`` the passages that
    have no vector yet, by digest, each with one of its ordinals.
    """

    # A worker makes one of each row that it reads: a dataclass would cost it several times as much.
    __slots__ = ("changed", "digests", "stored", "texts", "wanted")

    def __init__(self, texts: Sequence[str], digests: Sequence[bytes], stored: Stored) -> None:
        self.texts = texts
        self.digests = digests
        self.stored = stored
        self.wanted: dict[bytes, int] = {}
        if not stored.digests:
            self.changed = list(range(len(digests)))
            self.wanted.update(zip(digests, self.changed, strict=True))
            return
        old = stored.digests if stored.has_passages else {}
        self.changed = [n for n, now in enumerate(digests) if old.get(n) != now]
        if self.changed:
            known = set(stored.digests.values())
            self.wanted = {digests[n]: n for n in self.changed if digests[n] not in known}

    @property
    def wanted_texts(self) -> list[str]:
        """The texts of those that are wanted."""
        return [self.texts[ordinal] for ordinal in self.wanted.values()]

    @property
    def is_stored(self) -> bool:
        """Whether what is stored is this, all of it and no more."""
        return not self.changed and len(self.stored.digests) == len(self.digests)

    @property
    def is_plain(self) -> bool:
        """Whether it is one passage, and nothing else is stored."""
        return len(self.digests) == 1 and self.stored.digests.keys() <= {0}

    def rewritten(self, vectors: Mapping[int, HalfVector | Vector]) -> "Rewritten":
        """What is to be written, with the new vectors by the ordinals of ``wanted``."""
        given = [
            Given(n, now, self.texts[n], vectors.get(self.wanted.get(now, -1)))
            for n in self.changed
            for now in [self.digests[n]]
        ]
        return Rewritten(given, len(self.digests))


class Given(NamedTuple):
    """A passage to be written; without a vector, that of its digest which the row has is taken."""

    ordinal: int
    digest: bytes
    text: str
    vector: HalfVector | Vector | None


class Rewritten(NamedTuple):
    """What is to be written of a row, and how many passages it has in all."""

    given: list[Given]
    total: int


def passages_of(found: Rows, fingerprint: str, splitter: Splitter | None) -> dict[str, Passages]:
    """The passages of rows that have text, by key. Without a splitter a text is one passage."""
    rows = {}
    for pk, text in found.texts.items():
        if not text or text.isspace():
            continue
        texts = splitter.passages(text) if splitter else [text]
        digests = [digest(fingerprint, passage) for passage in texts]
        rows[pk] = Passages(texts, digests, found.stored.get(pk, NOTHING))
    return rows


def write(
    sidecar: type[EmbeddingModel], using: str, names: Names, rows: Mapping[str, Rewritten]
) -> list[str]:
    """Write the passages of rows that are locked, and remove what each has too many.

    Returns the keys of those that are not gone or excluded. Raises ``IntegrityError`` where a
    stored vector that was to be taken is there no longer.
    """
    chunked = declaration_of(sidecar).chunks is not None
    given = [(pk, one) for pk in sorted(rows) for one in rows[pk].given]
    fresh = [one.vector for _, one in given if one.vector is not None]
    numbers = iter(range(1, len(fresh) + 1))
    sql = names.fill(
        "write_passages",
        passage_column=", passage" if chunked else "",
        passage=", embedsync_given.passage" if chunked else "",
        passage_set=", passage = excluded.passage" if chunked else "",
    )
    with binary_cursor(using) as cursor:
        written: list[str] = []
        if given:
            cursor.execute(
                sql,
                {
                    "pks": text_array([pk for pk, _ in given]),
                    "ordinals": [one.ordinal for _, one in given],
                    "digests": [one.digest for _, one in given],
                    "passages": text_array([one.text for _, one in given]),
                    "numbers": [None if one.vector is None else next(numbers) for _, one in given],
                    "vectors": fresh or None,
                },
            )
            written += [key for (key,) in cursor.fetchall()]
        counts = {pk: row.total for pk, row in rows.items()}
        cursor.execute(
            names.fill("remove_passages"),
            {"pks": text_array(list(counts)), "counts": list(counts.values())},
        )
        written += [key for (key,) in cursor.fetchall()]
    return written
