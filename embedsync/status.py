"""What can be told of each sidecar: what is owed, how far its fill is, what is wrong with it.

It only reads, loads no model, and needs no more than SELECT on embedsync's tables.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from embedsync.conf import settings
from embedsync.database import names_of
from embedsync.declaration import (
    EmbeddingModel,
    declaration_of,
    key_of,
    rows_of,
    sidecars_in,
    sidecars_of,
    source_of,
)
from embedsync.misfit import settings_error
from embedsync.models import Ledger, SidecarState
from embedsync.schema import missing_columns, retyped, schema_error
from embedsync.sql import statement
from embedsync.state import ALIVE_SECONDS
from embedsync.wear import IndexStatus, counted, index_status

COUNTED = 1_000_000  # of more rows than these the server's estimate is told

# How often triggers have failed: NULL for never, and for a role that may not know.
MISSED = """
SELECT CASE WHEN has_sequence_privilege(oid, 'SELECT') THEN pg_sequence_last_value(oid) END
FROM (SELECT to_regclass('embedsync_missed')::oid) AS sequence(oid)
"""
# A row has several vectors where it is cut into passages: no more rows than the source has.
ESTIMATE = """
SELECT min(reltuples)::bigint FROM pg_class
WHERE oid = ANY (%s::text[]::regclass[]) AND reltuples >= 0
"""
# Rows that workers have settled in this minute and the one before it, a second.
RATES = """
SELECT sidecar,
    sum(embedded + unchanged)::float8 / extract(epoch FROM statement_timestamp() - since)::float8
FROM (SELECT date_trunc('minute', statement_timestamp()) - interval '1 minute') AS start(since)
JOIN embedsync_minute ON minute >= since
GROUP BY sidecar, since
"""
WORKERS = f"""
SELECT name, doing, settled, serves, errors, started_at,
    greatest(extract(epoch FROM statement_timestamp() - {statement("heard")}), 0)::float8
FROM embedsync_worker
ORDER BY started_at, name
"""

# What was asked of embedders in the last 24 hours, and what they were granted in this minute.
EMBEDDERS = """
SELECT alias, coalesce(sum(calls), 0)::bigint, coalesce(sum(tokens), 0)::bigint,
    coalesce(sum(granted_rows) FILTER (WHERE minute = this_minute), 0)::bigint,
    coalesce(sum(granted_tokens) FILTER (WHERE minute = this_minute), 0)::bigint
FROM unnest(%s::text[]) AS u(alias)
CROSS JOIN date_trunc('minute', statement_timestamp()) AS this_minute
LEFT JOIN embedsync_embedder_minute
    ON embedder = alias AND minute > this_minute - interval '24 hours'
GROUP BY alias
ORDER BY alias
"""


@dataclass(frozen=True)
class WorkerStatus:
    """A worker, as it said of itself, and for how many seconds it has not been heard of (``seen``).

    It ``is_alive`` as long as that is not long. ``settled`` are rows since ``started_at``,
    ``serves`` the keys of sidecars, ``errors`` why it does not serve others or is refused, by key.
    """

    name: str
    doing: str
    settled: int
    serves: set[str]
    errors: dict[str, str]
    started_at: datetime
    seen: float

    @property
    def is_alive(self) -> bool:
        return self.seen < ALIVE_SECONDS


@dataclass(frozen=True)
class EmbedderStatus:
    """An embedder, by its alias: calls and tokens of all workers in the last 24 hours.

    ``rows_per_minute`` and ``tokens_per_minute`` are its budget, None where it has none;
    ``granted_rows`` and ``granted_tokens`` (about) are what is spent of it in this minute.
    """

    embedder: str
    calls: int
    tokens: int
    granted_rows: int
    granted_tokens: int
    rows_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def is_limited(self) -> bool:
        return self.rows_per_minute is not None or self.tokens_per_minute is not None


@dataclass(frozen=True)
class Fill:
    """How far the fill of a sidecar is, which puts all of its rows into the ledger.

    ``state`` is "complete", "not begun", "begun", or "due": a trigger has failed, and no worker has
    begun to compare all rows. ``left`` is how many rows are to go, at most ``COUNTED`` of them;
    None where that is not known.
    """

    state: str
    left: int | None = None


@dataclass(frozen=True)
class SidecarStatus:
    """One sidecar. ``rows`` have a vector; None where this role may not count them.

    ``cut`` are rows whose text is longer than the model reads, so that its end counts for nothing.
    ``waiting`` are events in the inbox and rows that are due or will be, ``leased`` those in a
    worker's hands, ``parked`` those given up; ``oldest_wait`` is in seconds, of what is not parked.
    ``rate`` is how many rows a second workers have settled of late. ``error`` is why it cannot be
    served: the settings' fault, what a live worker says, or else what the last one has left
    word of; ``last_error`` is that of a row.
    """

    sidecar: str
    source: str
    rows: int | None
    rows_are_estimated: bool
    cut: int | None
    waiting: int
    leased: int
    parked: int
    oldest_wait: float
    rate: float
    fill: Fill
    index: IndexStatus
    schema_error: str
    error: str
    last_error: str

    @property
    def awaits_fill(self) -> bool:
        """Whether a fill has still to put rows into the ledger."""
        return self.fill.state != "complete" and self.fill.left != 0

    @property
    def is_well(self) -> bool:
        """Whether nobody needs to see to it, but for parked rows."""
        return not (self.schema_error or self.error)


def chosen(labels: Sequence[str], using: str) -> list[type[EmbeddingModel]]:
    """The sidecars of a database: all, or those of models given by label, sidecars or sources.

    Raises ``LookupError`` where a label names none.
    """
    here = sidecars_in(using)
    found: dict[type[EmbeddingModel], None] = {} if labels else dict.fromkeys(here)
    for label in labels:
        try:
            model = apps.get_model(label)
        except (LookupError, ValueError):
            raise LookupError(f"There is no model {label!r}: write app.Model.") from None
        own = [model] if issubclass(model, EmbeddingModel) else sidecars_of(model)
        wanted = [sidecar for sidecar in own if sidecar in here]
        if not wanted:
            raise LookupError(f"{label} has no embedding in database {using!r}.")
        found.update(dict.fromkeys(wanted))
    return list(found)


def statuses(using: str, wanted: Sequence[type[EmbeddingModel]]) -> list[SidecarStatus]:
    """How these sidecars are, in this order."""
    missing = missing_columns(using, wanted)
    with connections[using].cursor() as cursor:
        cursor.execute(statement("status"))
        owed = {key: counts for key, *counts in cursor.fetchall()}
        cursor.execute(RATES)
        rates = dict(cursor.fetchall())
        cursor.execute(MISSED)
        (missed,) = cursor.fetchone()
    keys, said = {key_of(sidecar) for sidecar in wanted}, dict[str, str]()
    alive = [worker for worker in workers(using) if worker.is_alive]
    for worker in alive:
        said |= worker.errors
    for worker in alive:
        for key in worker.serves - worker.errors.keys():
            said.pop(key, None)  # one that is being replaced, say, does not
    states = SidecarState.objects.using(using).in_bulk(keys)
    for key in states.keys() - said.keys() - set[str]().union(*(one.serves for one in alive)):
        if states[key].refused:
            said[key] = states[key].refused
    indexes = counted(using, wanted)
    found = []
    for sidecar in wanted:
        key = key_of(sidecar)
        broken = {table for table, _ in missing.get(key, ())}
        rows, is_estimate = embedded(using, sidecar, broken)
        waiting, leased, parked, oldest = owed.get(key, (0, 0, 0, 0.0))
        state = states.get(key)
        built = getattr(state, "index_built", None)
        maker = state.embedder if state and rows else ""
        index = index_status(sidecar, indexes.get(key), built)
        status = SidecarStatus(
            sidecar=key,
            source=source_of(sidecar)._meta.label_lower,
            rows=rows,
            rows_are_estimated=is_estimate,
            cut=None if rows is None else cut_rows(using, sidecar),
            waiting=waiting,
            leased=leased,
            parked=parked,
            oldest_wait=oldest,
            rate=float(rates.get(key, 0.0)),
            fill=fill_of(using, sidecar, state, missed, broken),
            index=index,
            schema_error=schema_error(sidecar, missing.get(key, []))
            or index.error
            or (retyped(using, sidecar) if key in said else ""),
            error=settings_error(sidecar, maker) or said.get(key, ""),
            last_error=last_error(using, key),
        )
        found.append(status)
    return found


def workers(using: str) -> list[WorkerStatus]:
    """The workers of a database that have not ended in order, the oldest first."""
    with connections[using].cursor() as cursor:
        cursor.execute(WORKERS)
        return [
            WorkerStatus(
                name, doing, settled, set(json.loads(serves)), json.loads(errors), started_at, seen
            )
            for name, doing, settled, serves, errors, started_at, seen in cursor.fetchall()
        ]


def embedders(using: str, wanted: Sequence[type[EmbeddingModel]]) -> list[EmbedderStatus]:
    """The embedders of these sidecars, by alias."""
    with connections[using].cursor() as cursor:
        cursor.execute(EMBEDDERS, [list({declaration_of(sidecar).embedder for sidecar in wanted})])
        found = [EmbedderStatus(*row) for row in cursor.fetchall()]
    limits: dict[str, tuple[int | None, int | None]] = {}
    for status in found:
        with suppress(ImproperlyConfigured):
            config = settings.embedder(status.embedder)
            limits[status.embedder] = config.rows_per_minute, config.tokens_per_minute
    return [
        replace(status, rows_per_minute=rows, tokens_per_minute=tokens)
        for status in found
        for rows, tokens in [limits.get(status.embedder, (None, None))]
    ]


def embedded(
    using: str, sidecar: type[EmbeddingModel], broken: set[str]
) -> tuple[int | None, bool]:
    """How many rows have a vector, and whether that is an estimate."""
    table = sidecar._meta.db_table
    if table in broken or not is_readable(using, table):
        return None, False
    rows: int = rows_of(sidecar, using).values("ordinal")[:COUNTED].count()
    if rows < COUNTED:
        return rows, False
    tables = [table]
    if declaration_of(sidecar).chunks:
        tables.append(source_of(sidecar)._meta.db_table)
    with connections[using].cursor() as cursor:
        cursor.execute(ESTIMATE, [list(map(connections[using].ops.quote_name, tables))])
        return max(rows, cursor.fetchone()[0] or 0), True


def cut_rows(using: str, sidecar: type[EmbeddingModel]) -> int:
    """How many rows the model has read the beginning of only. An index has just these."""
    cut: int = rows_of(sidecar, using).filter(cut=True).values("ordinal")[:COUNTED].count()
    return cut


def fill_of(
    using: str,
    sidecar: type[EmbeddingModel],
    state: SidecarState | None,
    missed: int | None,
    broken: set[str],
) -> Fill:
    """How far a sidecar's fill is; ``missed`` is how often triggers have failed, if known."""
    if state is not None and state.backfilled_at is not None:
        is_due = missed is not None and missed != state.missed
        return Fill("due" if is_due else "complete")
    after = None if state is None else state.backfill_after
    word = "not begun" if after is None else "begun"
    table = source_of(sidecar)._meta.db_table
    if table in broken or not is_readable(using, table):
        return Fill(word)
    names = names_of(sidecar, using)
    where = "" if after is None else f"WHERE ({names.pk}) > ({names.after_key})"
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM (SELECT FROM {names.source} {where} LIMIT %(limit)s) AS rest",
            {"after": after, "limit": COUNTED},
        )
        return Fill(word, cursor.fetchone()[0])


def is_readable(using: str, table: str) -> bool:
    """Whether a table is there, for a role that may read it."""
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(has_table_privilege(to_regclass(%s), 'SELECT'), false)",
            [connections[using].ops.quote_name(table)],
        )
        return bool(cursor.fetchone()[0])


def last_error(using: str, key: str) -> str:
    """The first line of the error of the row that was queued last: the next may quote the row."""
    errors = Ledger.objects.using(using).filter(sidecar=key).exclude(last_error="")
    newest = errors.order_by("-queued_at").values_list("last_error", flat=True).first()
    return (newest or "").partition("\n")[0]
