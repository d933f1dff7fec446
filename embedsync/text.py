"""A row's text: what of a row is embedded, and the digest that tells whether it changed."""

import hashlib
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, NamedTuple, TypeVar

from django.db import connections
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet

from embedsync.database import eligible, given, names_of, worker_transaction
from embedsync.declaration import EmbeddingModel, all_passages, declaration_of
from embedsync.path import Path, follow
from embedsync.size import within
from embedsync.source import Declaration

T = TypeVar("T")


class Stored(NamedTuple):
    """What is stored of a row: digests by ordinal, and whether each passage's text is there, too.

    It is not where the declaration has only now been given chunks.
    """

    digests: dict[int, bytes]
    has_passages: bool


class Rows(NamedTuple):
    """Rows as they are now: texts by key, and what is stored of those that have vectors.

    A row that is gone or does not meet the condition has no text; one that is blank has ``""``.
    ``pks`` are those that were read.
    """

    texts: dict[str, str]
    stored: dict[str, Stored]
    pks: list[str]


def read(
    sidecar: type[EmbeddingModel],
    pks: Sequence[str],
    using: str,
    limit: int | None = None,
    *,
    to_write: bool = False,
) -> Rows:
    """Read rows, in the order of ``pks``, until they have ``limit`` bytes of text together.

    The number of queries does not depend on that of the rows. ``to_write`` says that vectors are to
    be written: where that has to wait for a lock, it is known before anybody is paid for them.
    """
    declaration, names = declaration_of(sidecar), names_of(sidecar, using)
    with worker_transaction(using) as cursor:
        if to_write:
            cursor.execute(f"LOCK TABLE {names.sidecar} IN ROW EXCLUSIVE MODE")
        pks = list(pks) if limit is None else within(sidecar, pks, using, limit)
        rows = given(eligible(sidecar, using), names.pk, names.key, pks, names)
        vectors = given(all_passages(sidecar, using), names.source_pk, names.source_key, pks, names)
        # First, because whoever waits for a locked sidecar must not hold the source meanwhile.
        stored = stored_of(declaration, vectors)
        if declaration.text is None:
            texts = field_texts(declaration, rows)
        else:
            texts = method_texts(declaration, rows)
        texts = as_asked(texts, pks, using, names.fill("same_rows"))
        stored = as_asked(stored, pks, using, names.fill("same_vectors"))
    return Rows(texts, stored, pks)


def stored_of(declaration: Declaration, vectors: "QuerySet[Any]") -> dict[str, Stored]:
    """What a sidecar has, by key."""
    columns: list[Any] = ["embedsync_key", "ordinal", "digest"]
    if declaration.chunks is not None:
        columns.append(ExpressionWrapper(~Q(passage=""), BooleanField()))
    found: dict[str, Stored] = {}
    for pk, ordinal, content, *has_passage in vectors.values_list(*columns):
        stored = found.get(pk)
        if stored is None:
            stored = found[pk] = Stored({}, True)
        stored.digests[ordinal] = bytes(content)
        if has_passage == [False]:
            found[pk] = stored._replace(has_passages=False)
    return found


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


def field_texts(declaration: Declaration, rows: "QuerySet[Any]") -> dict[str, str]:
    """Texts by key, from a declaration's fields."""
    paths = {name: follow(rows.model._meta, name) for name in declaration.fields}
    single = [name for name, path in paths.items() if not path.many]
    values: dict[str, dict[str, Any]] = {
        pk: dict(zip(single, row, strict=True))
        for pk, *row in rows.values_list("embedsync_key", *single)
    }
    if len(single) < len(paths):
        for name in paths.keys() - set(single):
            for pk, several in related_values(rows, name, paths[name]).items():
                if pk in values:  # it may have come since
                    values[pk][name] = ", ".join(several)
        values = {pk: {name: row.get(name) for name in paths} for pk, row in values.items()}
    return {pk: render(declaration.template, row) for pk, row in values.items()}


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
    texts = ["" if value is None else str(value) for value in values.values()]
    shown = [text for text in texts if text and not text.isspace()]
    if template is None or not shown:
        return "\n".join(shown)
    return template.format_map(dict(zip(values, texts, strict=True)))


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
