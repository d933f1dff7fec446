"""How a worker talks to its database: its transactions, its cursors, the names it uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db import ProgrammingError, connections, models, transaction
from pgvector.psycopg.halfvec import register_halfvec_info
from psycopg.types import TypeInfo

from embedsync.declaration import EmbeddingModel, declaration_of, relation_of, source_of
from embedsync.sql import statement

# Of a worker's own transactions. READ COMMITTED, whatever the database's default is: the moves rely
# on each statement seeing what was committed before it. A commit need not wait for the disk: one
# that a crash takes back brings its ledger row back with it. Row security would make rows look
# deleted; with it off, a role that may not see them gets an error instead.
PREAMBLE = """
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL synchronous_commit = off;
SET LOCAL row_security = off;
SET LOCAL "DateStyle" = 'ISO, YMD';
SET LOCAL "TimeZone" = 'UTC';
"""


@contextmanager
def worker_transaction(using: str) -> Iterator[Any]:
    """A cursor in a short transaction of the worker's."""
    nested = connections[using].in_atomic_block
    with transaction.atomic(using), connections[using].cursor() as cursor:
        if not nested:
            cursor.execute(PREAMBLE)
        yield cursor


@contextmanager
def binary_cursor(using: str) -> Iterator[Any]:
    """A cursor whose parameters go to the server in binary: a vector as text costs ten times."""
    raw: Any = connections[using].connection
    if raw.adapters.types.get("halfvec") is None:
        with connections[using].wrap_database_errors:
            info = TypeInfo.fetch(raw, "halfvec")
        if info is None:
            raise ProgrammingError(
                "The type halfvec is not on the search_path: is pgvector 0.8 installed there?"
            )
        register_halfvec_info(raw, info)
    with connections[using].wrap_database_errors, psycopg.Cursor(raw) as cursor:
        yield cursor


class Names:
    """The identifiers of a sidecar and its source for the SQL of the moves, quoted."""

    def __init__(self, sidecar: type[EmbeddingModel], using: str) -> None:
        quote = connections[using].ops.quote_name
        source: Any = source_of(sidecar)._meta
        table = quote(source.db_table)
        self.sidecar = quote(sidecar._meta.db_table)
        self.source = table
        self.pk = f"{table}.{quote(source.pk.column)}"
        self.pk_type = relation_of(sidecar).db_type(connections[using])
        self.eligible = eligible_sql(sidecar, using)

    def fill(self, name: str, **more: str) -> str:
        """The statement ``name`` with its identifiers in place."""
        return statement(name).format(**vars(self), **more)


def eligible(sidecar: type[EmbeddingModel], using: str) -> "models.QuerySet[models.Model]":
    """The source's rows that meet the condition, past any manager of the application's."""
    rows = source_of(sidecar)._base_manager.using(using).order_by()
    condition = declaration_of(sidecar).condition
    return rows if condition is None else rows.filter(condition)


def eligible_sql(sidecar: type[EmbeddingModel], using: str) -> str:
    """The condition as SQL over the source's table, with % doubled for parameters to come."""
    query = eligible(sidecar, using).query
    if not query.where:
        return "TRUE"
    compiler = query.get_compiler(using)
    compiler.pre_sql_setup()
    try:
        sql, params = compiler.compile(query.where)
    except EmptyResultSet:
        return "FALSE"
    except FullResultSet:
        return "TRUE"
    return literal_sql(using, sql, params).replace("%", "%%")


def literal_sql(using: str, sql: str, params: Any) -> str:
    """SQL with its parameters written into it, quoted by psycopg."""
    operations: Any = connections[using].ops
    merged: str = operations.compose_sql(sql, params)
    return merged
