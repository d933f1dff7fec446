"""How a worker talks to its database: its transactions, its cursors, the names it uses."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import psycopg
from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db import (
    Error,
    InternalError,
    OperationalError,
    ProgrammingError,
    connections,
    models,
    transaction,
)
from django.db.models.expressions import RawSQL
from pgvector.psycopg.halfvec import register_halfvec_info
from pgvector.psycopg.vector import register_vector_info
from psycopg.types import TypeInfo

from embedsync.conf import settings
from embedsync.declaration import (
    EmbeddingModel,
    declaration_of,
    key_fields,
    source_of,
    watched_of,
)
from embedsync.events import key_text
from embedsync.space import column_type
from embedsync.sql import statement

# Of a worker's own transactions. READ COMMITTED, whatever the database's default is: the moves rely
# on each statement seeing what was committed before it. A commit need not wait for the disk: one
# that a crash takes back brings its ledger row back with it. Row security would make rows look
# deleted; with it off, a role that may not see them gets an error instead. Who waits for a table
# that is locked serves no other: the rows are due again.
PREAMBLE = """
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL synchronous_commit = off;
SET LOCAL row_security = off;
SET LOCAL lock_timeout = '2s';
SET LOCAL "DateStyle" = 'ISO, YMD';
SET LOCAL "TimeZone" = 'UTC';
SET LOCAL "IntervalStyle" = 'postgres';
SET LOCAL extra_float_digits = 1;
SET LOCAL bytea_output = 'hex';
"""

# Of a statement that looks for the oldest events. The planner's figures are often of an empty
# inbox, because one that was emptied keeps its pages: it takes a million events for a few, and
# reads and sorts all of them for each batch.
BY_INDEX = """
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
"""
BY_ANY_PLAN = """
SET LOCAL enable_seqscan TO DEFAULT;
SET LOCAL enable_bitmapscan TO DEFAULT;
"""

# Of a question that is asked outside of one.
QUESTION = f"""
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '2s';
{BY_INDEX}
"""

# The server, or the role, may only read for now; this worker was silent for too long.
FOR_NOW = {"25006", "25P03"}
QUERY_CANCELED, LOCK_NOT_AVAILABLE = "57014", "55P03"
PLAIN_KEYS = re.compile(r"[0-9a-f-]+(,[0-9a-f-]+)*")
TOO_LONG = {QUERY_CANCELED, LOCK_NOT_AVAILABLE}  # for the timeouts of this role
# Limits that a row's own size or shape runs into, though psycopg takes them for the server's.
LIMITS = ("54", "53400")
SCHEMA_ERRORS = {"42P01", "42703"}  # no such table, no such column


@contextmanager
def worker_transaction(using: str, plan: str = "") -> Iterator[Any]:
    """A cursor in a short transaction of the worker's; ``plan`` may be ``BY_INDEX``."""
    nested = connections[using].in_atomic_block
    try:
        with transaction.atomic(using), connections[using].cursor() as cursor:
            if not nested:
                # Who is frozen or cut off in the middle holds no lock for longer than a lease.
                idle = min(round(settings.lease * 1000), 2**31 - 1)
                limit = f"SET LOCAL idle_in_transaction_session_timeout = {idle}"
                cursor.execute(f"{PREAMBLE}{plan}{limit}")
            yield cursor
    except InternalError as error:
        # No sidecar's fault, and to be waited for.
        if sqlstate(error) in FOR_NOW:
            raise OperationalError(*error.args) from error.__cause__
        raise


def asked(using: str, sql: str, parameters: dict[str, Any]) -> Any:
    """The one row of a question about what is owed, asked without the cost of a transaction.

    Where a database's default is SERIALIZABLE it is not asked so: the application's writes would be
    refused because of what an idle worker has read.
    """
    connection: Any = connections[using]
    nested = connection.in_atomic_block  # where a failure must not break all
    # One message of several statements is a transaction, unless parameters are sent apart.
    alone = not nested and not connection.features.uses_server_side_binding
    with nullcontext() if alone else transaction.atomic(using), connection.cursor() as cursor:
        if not alone and not nested:
            cursor.execute(QUESTION)
        cursor.execute(f"{QUESTION if alone else ''}{sql}", parameters)
        while alone and cursor.nextset():
            pass
        return cursor.fetchone()


def is_own_session(using: str) -> bool:
    """Whether settings stay with this connection.

    Behind a pooler the session is the pooler's, and somebody else's in a moment.
    """
    connection: Any = connections[using]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return bool(pid == connection.connection.info.backend_pid)


@contextmanager
def binary_cursor(using: str) -> Iterator[Any]:
    """A cursor whose parameters go to the server in binary: a vector as text costs ten times."""
    raw: Any = connections[using].connection
    for name, register in {
        "halfvec": register_halfvec_info,
        "vector": register_vector_info,
    }.items():
        if raw.adapters.types.get(name) is None:
            with connections[using].wrap_database_errors:
                info = TypeInfo.fetch(raw, name)
            if info is None:
                raise ProgrammingError(
                    f"The type {name} is not on the search_path: is pgvector 0.8 installed there?"
                )
            register(raw, info)
    with connections[using].wrap_database_errors, psycopg.Cursor(raw) as cursor:
        yield cursor


@cache
def names_of(sidecar: type[EmbeddingModel], using: str) -> "Names":
    """The names of a sidecar, made once in a process."""
    return Names(sidecar, using)


class Names:
    """The identifiers of a sidecar and its source for the SQL of the moves, quoted.

    ``pk`` are the columns of the source's key, ``source_pk`` those of the sidecar that repeat it;
    ``single`` says that it is one column.
    ``key``, ``page_key`` and ``given_key`` go between a key's columns and its text in the queue.
    What stands beside the source in a FROM is called ``embedsync_...``, as no source is.
    """

    def __init__(self, sidecar: type[EmbeddingModel], using: str) -> None:
        connection = connections[using]
        quote = connection.ops.quote_name
        fields = key_fields(sidecar)
        types = [ours.db_type(connection) for ours, _ in fields]
        self.single = len(fields) == 1
        self.sidecar = quote(sidecar._meta.db_table)
        self.source = quote(source_of(sidecar)._meta.db_table)
        pk = source_columns(sidecar, using)
        source_pk = [f"{self.sidecar}.{quote(ours.column)}" for ours, _ in fields]
        page = [f"k{number}" for number, _ in enumerate(fields)]
        self.pk, self.source_pk, self.page = map(", ".join, (pk, source_pk, page))
        self.page_desc = ", ".join(f"{name} DESC" for name in page)
        self.columns = ", ".join(quote(ours.column) for ours, _ in fields)
        self.pk_page, self.source_page = (
            ", ".join(f"{column} AS {name}" for column, name in zip(columns, page, strict=True))
            for columns in (pk, source_pk)
        )
        self.key, self.source_key, self.page_key = map(key_text, (pk, source_pk, page))
        self.given_key = key_columns("embedsync_given.key", types)
        self.after_key = key_columns("%(after)s", types)
        reached = key_columns("embedsync_picked.reached", types)
        self.after_reached = (
            f"WHERE embedsync_picked.reached IS NULL OR ({self.page}) > ({reached})"
        )
        self.eligible = eligible_sql(sidecar, using)
        self.vector_type = column_type(declaration_of(sidecar).storage)

    def fill(self, name: str, **more: str) -> str:
        """The statement ``name`` with its identifiers in place."""
        return statement(name).format(**vars(self), **more)

    def page_of_keys(self, after: str) -> str:
        """The query of the next keys, those ``after`` a comparison like ``"> (7)"``."""
        return self.fill(
            "page_of_keys",
            after_pk=after and f"WHERE ({self.pk}) {after}",
            after_source_pk=after and f"WHERE ({self.source_pk}) {after}",
        )


def key_columns(key: str, types: list[str | None]) -> str:
    """SQL for the columns of a key that is given as text: the opposite of ``key_text()``."""
    if len(types) == 1:
        return f"{key}::{types[0]}"
    return ", ".join(f"({key}::jsonb ->> {n})::{name}" for n, name in enumerate(types))


def source_columns(sidecar: type[EmbeddingModel], using: str) -> list[str]:
    """The columns of the source's key, quoted and qualified."""
    quote = connections[using].ops.quote_name
    table = quote(source_of(sidecar)._meta.db_table)
    return [f"{table}.{quote(theirs.column)}" for _, theirs in key_fields(sidecar)]


def all_rows(sidecar: type[EmbeddingModel], using: str) -> "models.QuerySet[models.Model]":
    """The source's rows, past any manager of the application's, its base manager included."""
    return models.QuerySet(source_of(sidecar), using=using)


def text_array(values: Sequence[str]) -> str:
    """PostgreSQL's literal for a ``text[]``, which psycopg takes ten times as long to make.

    A batch sends its keys five times (manual, "Array Input and Output Syntax").
    """
    plain = ",".join(values)
    # Numbers and UUIDs; whatever else is quoted.
    if PLAIN_KEYS.fullmatch(plain) and plain.count(",") == len(values) - 1:
        return f"{{{plain}}}"
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in escaped) + "}"


def given(
    rows: "models.QuerySet[Any]", columns: str, key: str, pks: Sequence[str], names: Names
) -> "models.QuerySet[Any]":
    """Those of ``rows`` that have the keys ``pks``, with their key as ``embedsync_key``.

    The keys are the database's own text, as trigger and ledger have it, past the fields'
    conversions, and one parameter.
    """
    found = f"SELECT {names.given_key} FROM unnest(%s::text[]) AS embedsync_given(key)"
    # The planner takes the array for a short one, and looks each key up: for IN it read all of a
    # table of 10,000 rows to find 500. Several columns cannot be compared so.
    sql = f"({columns}) = ANY (ARRAY({found}))" if names.single else f"({columns}) IN ({found})"
    asked = RawSQL(sql, [text_array(pks)], models.BooleanField())  # noqa: S611
    # Without the order of the model's Meta, for which they would be sorted.
    keyed: models.QuerySet[Any] = (
        rows.filter(asked)
        .annotate(embedsync_key=RawSQL(key, [], models.TextField()))  # noqa: S611
        .order_by()
    )
    return keyed


def eligible(sidecar: type[EmbeddingModel], using: str) -> "models.QuerySet[models.Model]":
    """The source's rows that meet the condition."""
    rows = all_rows(sidecar, using)
    condition = declaration_of(sidecar).condition
    return rows if condition is None else rows.filter(condition)


def eligible_sql(sidecar: type[EmbeddingModel], using: str) -> str:
    """The condition as SQL over the source's table, with % doubled for parameters to come."""
    rows = eligible(sidecar, using)
    query = rows.query
    if not query.where:
        return "TRUE"
    compiler = query.get_compiler(using)
    compiler.pre_sql_setup()
    try:
        if len(query.alias_map) > 1:
            # It looks at other tables as well: of a parent, or a related row. Under other names,
            # because the source's own stands outside, too.
            keys = rows.values_list(*(theirs.attname for _, theirs in key_fields(sidecar)))
            keys.query.bump_prefix(query)
            sql, params = keys.query.sql_with_params()
            sql = f"({', '.join(source_columns(sidecar, using))}) IN ({sql})"
        else:
            sql, params = compiler.compile(query.where)
    except EmptyResultSet:
        return "FALSE"
    except FullResultSet:
        return "TRUE"
    return literal_sql(using, sql, params).replace("%", "%%")


def related_sql(sidecar: type[EmbeddingModel], hop: str, using: str) -> str | None:
    """A query of the keys of the source's rows that the event ``embedsync_picked`` of a
    hop belongs to.

    None where the sidecar's declaration has no such hop.
    """
    keys = {watched.lookup: watched.keys for watched in watched_of(sidecar)}
    if not hop or hop not in keys:
        return None
    (column,) = keys[hop]
    value = RawSQL(f"embedsync_picked.source_pk::{column.db_type(connections[using])}", [])  # noqa: S611
    rows = all_rows(sidecar, using).filter(**{hop: value})
    keys_of_source = [theirs.attname for _, theirs in key_fields(sidecar)]
    sql, params = rows.values_list(*keys_of_source).query.sql_with_params()
    return literal_sql(using, sql, params).replace("%", "%%")


def literal_sql(using: str, sql: str, params: Any) -> str:
    """SQL with its parameters written into it, quoted by psycopg."""
    operations: Any = connections[using].ops
    merged: str = operations.compose_sql(sql, params)
    return merged


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code for what went wrong, of one of Django's exceptions."""
    return getattr(error.__cause__, "sqlstate", None)


@contextmanager
def limited(using: str, **limits: float) -> Iterator[None]:
    """A transaction for some questions, within limits of the server's, in seconds.

    Where a table is locked, who asks again and again would otherwise pile up.
    """
    connection = connections[using]
    # A metrics server has a thread for each scrape: what it leaves open, nobody closes.
    was_open, nested = connection.connection is not None, connection.in_atomic_block
    try:
        with transaction.atomic(using):
            if not nested:
                with connection.cursor() as cursor:
                    for name, seconds in limits.items():
                        cursor.execute(f"SET LOCAL {name} = '{seconds * 1000:.0f}ms'")
            yield
    except Error:
        connection.close_if_unusable_or_obsolete()
        raise
    finally:
        if not was_open:
            connection.close()


def has_failed(error: BaseException, using: str) -> bool:
    """Whether an ``OperationalError`` or ``InterfaceError`` says that this database has failed.

    Not where a row has run into a limit, nor where it comes from somewhere else: a model's method
    may ask another database for its text.
    """
    code = sqlstate(error)
    connection: Any = connections[using].connection
    if connection is None or connection.closed:
        return True
    return code is not None and not code.startswith(LIMITS)


def is_locked(error: BaseException) -> bool:
    """Whether it is that a lock could not be had in time: nothing is wrong with the database."""
    return sqlstate(error) == LOCK_NOT_AVAILABLE


def told(error: Exception) -> str:
    """An error of the database in one line, with the cure where the schema is to blame."""
    text = str(error).strip().partition("\n")[0]
    if sqlstate(error) in SCHEMA_ERRORS:
        return f"{text}. Run makemigrations and migrate."
    return text


def summary(error: Exception) -> str:
    """An error for log and ledger."""
    return storable(f"{type(error).__name__}: {error}")


def storable(said: str) -> str:
    """The beginning of what somebody has said, without what PostgreSQL does not take."""
    return said[:500].replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
