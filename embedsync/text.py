"""A row's text: what of a row is embedded, and the digest that tells whether it changed."""

import hashlib
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from django.db import connections
from django.db.models import TextField
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast

from embedsync.database import eligible, worker_transaction
from embedsync.declaration import EmbeddingModel, declaration_of, relation_of, rows_of


def read(
    sidecar: type[EmbeddingModel], pks: Sequence[str], using: str
) -> tuple[dict[str, str], dict[str, bytes]]:
    """The texts of rows as they are now, and the digests of their vectors, both by key.

    A row that is gone or does not meet the condition has no text; one that is blank has ``""``.
    """
    declaration = declaration_of(sidecar)
    # The keys as the database's own text, past the fields' conversions, and as one parameter.
    pk_type = relation_of(sidecar).db_type(connections[using])
    keys = RawSQL(f"SELECT unnest(%s::text[])::{pk_type}", [list(pks)])  # noqa: S611
    rows = eligible(sidecar, using).filter(pk__in=keys)
    vectors = rows_of(sidecar, using).filter(source_id__in=keys)
    # The key as PostgreSQL writes it, which is how trigger and ledger have it.
    with worker_transaction(using):
        values = list(rows.values_list(Cast("pk", TextField()), *declaration.fields))
        stored = list(vectors.values_list(Cast("source_id", TextField()), "digest"))
    texts = {
        pk: render(declaration.template, dict(zip(declaration.fields, row, strict=True)))
        for pk, *row in values
    }
    return texts, {pk: bytes(content) for pk, content in stored}


def render(template: str | None, values: Mapping[str, Any]) -> str:
    """The text of one row from its fields' values; ``""`` where they are all blank.

    Without a template the values that are not blank stand one below the other.
    """
    texts = {name: "" if value is None else str(value) for name, value in values.items()}
    if not any(text.strip() for text in texts.values()):
        return ""
    if template is None:
        return "\n".join(text for text in texts.values() if text.strip())
    return template.format_map(texts)


def template_names(template: str) -> set[str]:
    """The names that a template uses.

    Raises ``ValueError`` where its braces are wrong or it does more than name fields.
    """
    names = set()
    for _, name, specification, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or specification or conversion:
            raise ValueError(
                f"{{{name}}} may only name a field, with no index, format or attribute"
            )
        names.add(name)
    return names


def digest(fingerprint: str, text: str) -> bytes:
    """16 bytes that change with the text and with the embedder (its fingerprint)."""
    # A lone surrogate cannot come out of PostgreSQL, but can out of a field's from_db_value().
    content = f"{fingerprint}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()
