"""A row's text: what of a row is embedded, and the digest that tells whether it changed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import Any, TypeVar

from django.db import connections
from django.db.models import (
    BigIntegerField,
    BooleanField,
    CharField,
    F,
    Func,
    JSONField,
    QuerySet,
    Sum,
    TextField,
)
from django.db.models.expressions import RawSQL

from embedsync.database import Names, all_rows, eligible, names_of, worker_transaction
from embedsync.declaration import EmbeddingModel, declaration_of, rows_of
from embedsync.path import Path, follow
from embedsync.source import Declaration

T = TypeVar("T")

SHORT_TEXT = 1000  # characters; columns that hold no more are not measured


def read(
    sidecar: type[EmbeddingModel], pks: Sequence[str], using: str
) -> tuple[dict[str, str], dict[str, bytes]]:
    """The texts of rows as they are now, and the digests of their vectors, both by key.

    A row that is gone or does not meet the condition has no text; one that is blank has ``""``.
    The number of queries does not depend on that of the rows.
    """
    declaration, names = declaration_of(sidecar), names_of(sidecar, using)
    rows = given(eligible(sidecar, using), names.pk, names.key, pks, names)
    vectors = given(rows_of(sidecar, using), names.source_pk, names.source_key, pks, names)
    with worker_transaction(using):
        # First, because whoever waits for a locked sidecar must not hold the source meanwhile.
        stored = list(vectors.values_list("embedsync_key", "digest"))
        if declaration.text is None:
            texts = field_texts(declaration, rows)
        else:
            texts = method_texts(declaration, rows)
        digests = {pk: bytes(content) for pk, content in stored}
        texts = as_asked(texts, pks, using, names.fill("same_rows"))
        digests = as_asked(digests, pks, using, names.fill("same_vectors"))
    return texts, digests


def given(
    rows: "QuerySet[Any]", columns: str, key: str, pks: Sequence[str], names: Names
) -> "QuerySet[Any]":
    """Those of ``rows`` that have the keys ``pks``, with their key as ``embedsync_key``.

    The keys are the database's own text, past the fields' conversions, and one parameter.
    """
    found = f"SELECT {names.given_key} FROM unnest(%s::text[]) AS embedsync_given(key)"
    rows = rows.filter(condition_sql(f"({columns}) IN ({found})", pks))
    keyed: QuerySet[Any] = rows.annotate(embedsync_key=key_sql(key))
    return keyed


def within(sidecar: type[EmbeddingModel], pks: Sequence[str], using: str, limit: int) -> list[str]:
    """The first of the rows, as many as have ``limit`` bytes of text together; one at least.

    The server knows the size of a stored text without reading it.
    """
    if len(pks) < 2:
        return list(pks)
    names = names_of(sidecar, using)
    rows = given(all_rows(sidecar, using), names.pk, names.key, pks, names)
    sizes: dict[str, int] = {}
    with worker_transaction(using):
        for query in size_queries(declaration_of(sidecar), rows):
            for pk, *found in query:
                sizes[pk] = sizes.get(pk, 0) + sum(size or 0 for size in found)
    total, fitting = 0, list[str]()
    for pk in pks:
        total += sizes.get(pk, 0)
        if total > limit and fitting:
            break
        fitting.append(pk)
    return fitting


def size_queries(declaration: Declaration, rows: "QuerySet[Any]") -> "Iterator[QuerySet[Any, Any]]":
    """Queries of keys and bytes, of the columns that may be long: one, and one a many-valued."""
    single = []
    for name in (*declaration.fields, *declaration.watch):
        path = follow(rows.model._meta, name)
        function = size_function(path.column)
        if function is None or path.rest:
            continue
        size = Func(F(name), function=function, output_field=BigIntegerField())
        if path.many:
            sums = rows.values("embedsync_key").annotate(embedsync_size=Sum(size))
            yield sums.values_list("embedsync_key", "embedsync_size")
        else:
            single.append(size)
    if single:
        yield rows.values_list("embedsync_key", *single)


def size_function(column: Any) -> str | None:
    """What tells how many bytes a column has; None where they are few, or always the same."""
    if isinstance(column, TextField | CharField):
        return None if 0 < (column.max_length or 0) <= SHORT_TEXT else "octet_length"
    return "pg_column_size" if isinstance(column, JSONField) else None


def as_asked(found: dict[str, T], pks: Sequence[str], using: str, sql: str) -> dict[str, T]:
    """What was found, by the keys that were asked for.

    A key may be written in another way than in the database and be equal to it: 1.5 and 1.50, or a
    and A under a collation that takes them for the same. ``sql`` finds the pairs.
    """
    if found.keys() <= set(pks):
        return found
    with connections[using].cursor() as cursor:
        cursor.execute(sql, [list(pks)])
        return {asked: found[there] for asked, there in cursor.fetchall() if there in found}


def condition_sql(sql: str, pks: Sequence[str]) -> RawSQL:
    return RawSQL(sql, [list(pks)], BooleanField())  # noqa: S611


def key_sql(sql: str) -> RawSQL:
    """The key as PostgreSQL writes it, which is how trigger and ledger have it."""
    return RawSQL(sql, [], TextField())  # noqa: S611


def field_texts(declaration: Declaration, rows: "QuerySet[Any]") -> dict[str, str]:
    """Texts by key, from a declaration's fields."""
    paths = {name: follow(rows.model._meta, name) for name in declaration.fields}
    single = [name for name, path in paths.items() if not path.many]
    values = {
        pk: dict(zip(single, row, strict=True))
        for pk, *row in rows.values_list("embedsync_key", *single)
    }
    for name, path in paths.items():
        if path.many:
            for pk, several in related_values(rows, name, path).items():
                if pk in values:  # it may have come since
                    values[pk][name] = ", ".join(several)
    return {
        pk: render(declaration.template, {name: row.get(name) for name in declaration.fields})
        for pk, row in values.items()
    }


def related_values(rows: "QuerySet[Any]", name: str, path: Path) -> dict[str, list[str]]:
    """What several related rows say, by key of the row that they belong to.

    In the order of their primary keys, each row once, so that the text stays the same as long as
    they do. The order is Python's: a database's collation may change.
    """
    row = f"{path.relations}__pk" if path.relations != name else name
    found: dict[str, dict[Any, str]] = {}
    for pk, related, value in rows.values_list("embedsync_key", row, name):
        if value is not None and str(value).strip():
            found.setdefault(pk, {})[related] = str(value)
    return {pk: [values[k] for k in sorted(values)] for pk, values in found.items()}


def method_texts(declaration: Declaration, rows: "QuerySet[Any]") -> dict[str, str]:
    """Texts by key, from a method of the model; what it looks at is fetched beforehand."""
    assert declaration.text is not None
    paths = [follow(rows.model._meta, name) for name in declaration.watch]
    single = {path.relations for path in paths if path.relations and not path.many}
    several = {path.relations for path in paths if path.many}
    if single:
        rows = rows.select_related(*sorted(single))
    found = rows.prefetch_related(*sorted(several))
    return {row.embedsync_key: str(getattr(row, declaration.text)() or "") for row in found}


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
