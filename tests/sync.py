"""What "in step" means, computed in Python from the source's rows and nothing else."""

import struct

from embedsync.declaration import declaration_of, source_of
from embedsync.embedders import get_embedder
from embedsync.models import Inbox, Ledger
from embedsync.text import render


def as_halfvec(vector):
    """The vector as pgvector stores it."""
    size = len(vector)
    return list(struct.unpack(f"{size}e", struct.pack(f"{size}e", *map(float, vector))))


def expected_vectors(sidecar):
    """Key -> vector of every row that has to have one."""
    declaration = declaration_of(sidecar)
    rows = source_of(sidecar)._base_manager.all()
    if declaration.condition is not None:
        rows = rows.filter(declaration.condition)
    texts = {
        row.pk: render(
            declaration.template, {name: getattr(row, name) for name in declaration.fields}
        )
        for row in rows
    }
    texts = {pk: text for pk, text in texts.items() if text}
    vectors = get_embedder(declaration.embedder).embed_documents(list(texts.values()))
    return {pk: as_halfvec(vector) for pk, vector in zip(texts, vectors, strict=True)}


def stored_vectors(sidecar):
    stored = sidecar.objects.values_list("source_id", "vector")
    return {pk: as_halfvec(vector) for pk, vector in stored}


def assert_in_step(*sidecars):
    """Every vector is that of its row's text now, none missing, none too many, nothing owed."""
    for sidecar in sidecars:
        stored, expected = stored_vectors(sidecar), expected_vectors(sidecar)
        # Keys only: pytest would take minutes to explain how thousands of vectors differ.
        missing, extra = expected.keys() - stored.keys(), stored.keys() - expected.keys()
        wrong = [pk for pk in stored.keys() & expected.keys() if stored[pk] != expected[pk]]
        faults = {"missing": missing, "extra": extra, "wrong": wrong}
        assert not any(faults.values()), (sidecar, faults)
    assert list(Inbox.objects.all()) == []
    assert list(Ledger.objects.all()) == []
