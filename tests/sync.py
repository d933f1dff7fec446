"""What "in step" means, computed in Python from the source's rows and nothing else."""

import struct

from django.core.exceptions import ObjectDoesNotExist

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
    texts = {row.pk: text_of(row, declaration) for row in rows}
    texts = {pk: text for pk, text in texts.items() if text.strip()}
    vectors = get_embedder(declaration.embedder).embed_documents(list(texts.values()))
    return {pk: as_halfvec(vector) for pk, vector in zip(texts, vectors, strict=True)}


def text_of(row, declaration):
    """The text of a row, by way of its attributes."""
    if declaration.text:
        return getattr(row, declaration.text)()
    return render(declaration.template, {name: value_at(row, name) for name in declaration.fields})


def value_at(row, name):
    """What a row says under a name; of several related rows, in the order of their keys."""
    rows, many = [row], False
    *relations, last = name.split("__")
    for relation in relations:
        related = {}
        for row in rows:
            try:
                found = getattr(row, accessor(row, relation))
            except ObjectDoesNotExist:
                continue
            if hasattr(found, "all"):
                many = True
                related.update({one.pk: one for one in found.all()})
            elif found is not None:
                related[found.pk] = found
        rows = [related[pk] for pk in sorted(related)]
    values = [getattr(row, last) for row in rows]
    if many:
        return ", ".join(str(value) for value in values if value is not None)
    return values[0] if values else None


def accessor(row, relation):
    """The attribute of a relation: that of a reverse one may differ from its name in queries."""
    field = row._meta.get_field(relation)
    return field.get_accessor_name() if hasattr(field, "get_accessor_name") else relation


def stored_vectors(sidecar):
    """Key -> vector, as the database has them; a key of several columns is a tuple."""
    stored = sidecar.objects.values_list("pk", "vector")
    return {unpacked(*pk): as_halfvec(vector) for pk, vector in stored}


def unpacked(*key_and_ordinal):
    *key, _ = key_and_ordinal
    return key[0] if len(key) == 1 else tuple(key)


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
