"""The sweep: compares sources with their sidecars, and enqueues the rows that differ.

It finds what no trigger could see. Each page is read in one snapshot that sees row, vector, inbox
and ledger together: a change that has been committed is owed there, or is in the vector. So what
is found is exact, however busy the database is.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any
from uuid import uuid4

from django.core.exceptions import ImproperlyConfigured
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)

from embedsync import state
from embedsync.database import (
    LOCK_NOT_AVAILABLE,
    PREAMBLE,
    TOO_LONG,
    names_of,
    sqlstate,
    told,
    worker_transaction,
)
from embedsync.declaration import (
    EmbeddingModel,
    declaration_of,
    key_of,
    source_of,
    watched_of,
)
from embedsync.embedders import get_embedder
from embedsync.passages import passages_of
from embedsync.splitter import Splitter
from embedsync.sql import statement
from embedsync.swept import DRIFT, EXAMPLES, Swept
from embedsync.text import read

logger = logging.getLogger("embedsync")

PAGE = 1000  # rows
RATE = 10_000.0  # rows a second

# The locks before the snapshot, because a TRUNCATE, and an ALTER TABLE that rewrites its table, is
# seen by snapshots older than it is. They hold up nothing that a SELECT would not; and what waits
# for one table must not hold the others for long meanwhile.
SNAPSHOT = (
    f"{PREAMBLE}SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
    " SET LOCAL lock_timeout = '200ms';"
    " LOCK TABLE {tables} IN ACCESS SHARE MODE;"
)
SECONDS_UNTIL_UNLOCKED = 1.0


class Pace:
    """How fast sweeps go, in rows a second (0: as fast as they can), and when they are to end."""

    def __init__(self, rate: float = RATE, seconds: float | None = None) -> None:
        self.rate = rate
        # A plain attribute, because a signal handler that sets an Event can wait for itself.
        self.stopping = False
        self._end = None if seconds is None else time.monotonic() + seconds

    def stop(self) -> None:
        """End after the page in hand."""
        self.stopping = True

    @property
    def ended(self) -> bool:
        return self.stopping or (self._end is not None and time.monotonic() >= self._end)

    def keep(self, rows: int, started: float) -> None:
        """Wait until so many rows may have taken this long."""
        if self.rate:
            self.wait(started + rows / self.rate - time.monotonic())

    def wait(self, seconds: float) -> None:
        """Sleep, in slices, because a signal does not end a sleep."""
        due = time.monotonic() + seconds
        while not self.ended and (left := due - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


def sweep_all(
    chosen: Sequence[type[EmbeddingModel]], using: str, *, pace: Pace, **options: Any
) -> Iterator[Swept]:
    """Sweep sidecars until the time is up, in turn, so that short runs come to all of them.

    Takes the options of ``sweep()``.
    """
    by_key = {key_of(sidecar): sidecar for sidecar in chosen}
    with worker_transaction(using) as cursor:
        keys = state.by_last_sweep(cursor, list(by_key))
    for key in keys:
        if pace.ended:
            return
        yield sweep(by_key[key], using, pace=pace, **options)


def estimate(chosen: Sequence[type[EmbeddingModel]], using: str) -> int:
    """About how many rows there are to compare, from the statistics of the tables."""
    quote = connections[using].ops.quote_name
    tables = [quote(source_of(sidecar)._meta.db_table) for sidecar in chosen]
    with worker_transaction(using) as cursor:
        cursor.execute(
            "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint"
            " FROM unnest(%s::text[]) AS t(name) JOIN pg_class ON oid = to_regclass(t.name)",
            [tables],
        )
        rows: int = cursor.fetchone()[0]
    return rows


def sweep(
    sidecar: type[EmbeddingModel],
    using: str = DEFAULT_DB_ALIAS,
    *,
    repair: bool = False,
    purge: bool = False,
    restart: bool = False,
    page: int = PAGE,
    pace: Pace | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Swept:
    """Compare a sidecar with its source, in pages of so many rows, from where the last run stopped.

    ``repair`` enqueues the rows that differ; ``purge`` removes the vectors where the source's table
    is gone; ``restart`` begins at the first row; ``progress`` is called with numbers of rows.
    Raises ``OperationalError`` and ``InterfaceError`` where the database does not answer any more;
    the next run goes on after the last page.
    """
    run = Run(sidecar, using, repair=repair, size=page, pace=pace or Pace(), progress=progress)
    try:
        return run.run(restart)
    except InterfaceError:
        raise
    except OperationalError as error:
        # A timeout of this role, say: no reason to leave out all other sidecars, too.
        if sqlstate(error) not in TOO_LONG:
            raise
        return replace(run.swept, error=told(error))
    except (ImproperlyConfigured, state.SupersededError) as error:
        return replace(run.swept, error=str(error))
    except DatabaseError as error:
        if isinstance(error, ProgrammingError) and run.source_is_gone():
            return run.without_source(purge)
        return replace(run.swept, error=told(error))


class Run:
    """One run over one sidecar. ``swept`` is what has been found so far, ``after`` the last key."""

    def __init__(
        self,
        sidecar: type[EmbeddingModel],
        using: str,
        *,
        repair: bool,
        size: int,
        pace: Pace,
        progress: Callable[[int], object],
    ) -> None:
        self.sidecar = sidecar
        self.using = using
        self.repair = repair
        self.size = size
        self.pace = pace
        self.progress = progress
        self.key = key_of(sidecar)
        self.names = names_of(sidecar, using)
        quote = connections[using].ops.quote_name
        watched = [quote(watched.options.db_table) for watched in watched_of(sidecar)]
        # In the order in which workers lock them.
        self.tables = ", ".join(dict.fromkeys([self.names.sidecar, *watched]))
        self.new = Swept(sidecar._meta.label, source_of(sidecar)._meta.label)
        self.swept = self.new
        self.after: str | None = None
        self.id = ""
        self.embedder = ""
        self.noted = time.monotonic()

    def run(self, restart: bool) -> Swept:
        """Compare page after page, to the end or until the time is up."""
        self.embedder = get_embedder(declaration_of(self.sidecar).embedder).fingerprint
        self._take_up(restart)
        while not self.swept.finished and not self.pace.ended:
            started = time.monotonic()
            try:
                keys, kinds = self._read_page()
            except OperationalError as error:
                if sqlstate(error) != LOCK_NOT_AVAILABLE:
                    raise
                logger.warning("the sweep of %s waits for a locked table", self.key)
                self.pace.wait(SECONDS_UNTIL_UNLOCKED)
                continue
            self._settle(keys, kinds)
            self.progress(len(keys))
            if not self.swept.finished:
                self.pace.keep(len(keys), started)
        return self.swept

    def _take_up(self, restart: bool) -> None:
        """Go on with the sweep in hand, or begin one."""
        with worker_transaction(self.using) as cursor:
            state.assert_served(cursor, self.sidecar, self.embedder)
            after, found = state.sweep_in_hand(cursor, self.key)
            # One of another declaration compared other texts, and one that only looked has left
            # behind what this one is to repair.
            declared = found.get("declaration") == self._declaration
            in_hand = found and not found["finished"] and declared
            if in_hand and not restart and not (self.repair and not self._load(found).ok):
                self._join(after, found)
                self.swept = replace(self.swept, resumed=self.swept.compared)
            else:
                self.id = uuid4().hex
                state.sweep_begun(cursor, self.key, self._dump(self.new))
                self.after, self.swept = None, self.new

    def _join(self, after: str | None, found: dict[str, Any]) -> None:
        self.id, self.after, self.swept = found["run"], after, self._load(found)

    @property
    def _declaration(self) -> str:
        return state.fingerprint_of(self.sidecar, self.embedder)

    def _dump(self, swept: Swept) -> dict[str, Any]:
        saved = asdict(swept)
        for name in ("sidecar", "source", "resumed", "source_is_gone", "error"):
            del saved[name]
        return {**saved, "run": self.id, "declaration": self._declaration}

    def _load(self, found: dict[str, Any]) -> Swept:
        known = asdict(self.new).keys() & found.keys()  # another release may have noted others
        return replace(
            self.new, resumed=self.swept.resumed, **{name: found[name] for name in known}
        )

    @contextmanager
    def _snapshot(self) -> Iterator[Any]:
        """A cursor in a transaction whose statements all see the same moment, and write nothing."""
        nested = connections[self.using].in_atomic_block  # by a TestCase, or durable says so
        with (
            transaction.atomic(self.using, durable=True),
            connections[self.using].cursor() as cursor,
        ):
            if not nested:
                cursor.execute(SNAPSHOT.format(tables=self.tables))
            yield cursor

    def _page_of_keys(self) -> str:
        return self.names.page_of_keys("" if self.after is None else f"> ({self.names.after_key})")

    def _read_page(self) -> tuple[list[str], dict[str, str]]:
        """The keys of the next page in order, and what is the matter with some of them."""
        with self._snapshot() as cursor:
            cursor.execute(
                self.names.fill("sweep_page", page_of_keys=self._page_of_keys()),
                {"after": self.after, "limit": self.size, "key": self.key},
            )
            rows = cursor.fetchall()
            kinds = {key: "waiting" for key, to_be_filled in rows if to_be_filled}
            differing = self._differing([key for key, _ in rows if key not in kinds])
            if differing:
                # Again, because a worker with another declaration may have come meanwhile.
                state.assert_served(cursor, self.sidecar, self.embedder)
                cursor.execute(statement("sweep_owed"), {"key": self.key, "pks": list(differing)})
                kinds |= differing | dict(cursor.fetchall())
        return [key for key, _ in rows], kinds

    def _differing(self, keys: list[str]) -> dict[str, str]:
        """Those of the rows whose vector is not that of their text, and in what way."""
        if not keys:
            return {}
        try:
            found = read(self.sidecar, keys, self.using)
            # Not before there is a text: it loads the model.
            splitter = self._splitter if found.texts else None
            rows = passages_of(found, self.embedder, splitter)
        except (OperationalError, InterfaceError, ProgrammingError, ImproperlyConfigured):
            raise
        except Exception:
            # A row that cannot be read: which one? A worker will park it, and keep the reason.
            if len(keys) == 1:
                return {keys[0]: "stale"}
            return {key: kind for one in keys for key, kind in self._differing([one]).items()}
        stored = found.stored
        return {
            key: "missing" if key not in stored else "stale" if key in rows else "orphaned"
            for key in keys
            if not (rows[key].is_stored if key in rows else key not in stored)
        }

    @cached_property
    def _splitter(self) -> Splitter | None:
        declaration = declaration_of(self.sidecar)
        if declaration.chunks is None:
            return None
        return Splitter(declaration.chunks, get_embedder(declaration.embedder))

    def _settle(self, keys: list[str], kinds: dict[str, str]) -> None:
        """Note what was found in a page, and enqueue it if asked to, both or neither."""
        drifted = [key for key in keys if kinds.get(key) in DRIFT] if self.repair else []
        ended = len(keys) < self.size
        found = self.swept.plus(kinds, compared=len(keys), enqueued=len(drifted))
        now = time.monotonic()
        found = replace(found, seconds=found.seconds + now - self.noted, finished=ended)
        last = keys[-1] if keys else self.after
        with worker_transaction(self.using) as cursor:
            if state.sweep_reached(
                cursor, self.key, self.after, last, self._dump(found), ended=ended
            ):
                if drifted:
                    cursor.execute(statement("sweep_repair"), {"key": self.key, "pks": drifted})
                self.after, self.swept, self.noted = last, found, now
                return
            # Another sweep has noted this page before; go on where it is.
            after, other = state.sweep_in_hand(cursor, self.key)
        if other:
            self._join(after, other)
        else:
            self._take_up(restart=False)

    def source_is_gone(self) -> bool:
        with worker_transaction(self.using) as cursor:
            cursor.execute(
                "SELECT to_regclass(%s) IS NULL AND to_regclass(%s) IS NOT NULL",
                [self.names.source, self.names.sidecar],
            )
            gone: bool = cursor.fetchone()[0]
        return gone

    def without_source(self, purge: bool) -> Swept:
        """The vectors that are left where the source's table is gone; removed if asked to."""
        names = self.names
        keys = f"(SELECT DISTINCT {names.source_key} AS key FROM {names.sidecar}) keys"
        with worker_transaction(self.using) as cursor:
            cursor.execute(f"SELECT count(*) FROM {keys}")
            orphaned = cursor.fetchone()[0]
            cursor.execute(f"SELECT key FROM {keys} ORDER BY key LIMIT {EXAMPLES}")
            examples = {"orphaned": [key for (key,) in cursor.fetchall()]}
        swept = replace(self.new, orphaned=orphaned, examples=examples, source_is_gone=True)
        removed, self.after = 1 if purge else 0, None
        while removed and not self.pace.ended:
            started = time.monotonic()
            after = (
                f"WHERE ({names.source_pk}) > ({names.after_key})" if self.after is not None else ""
            )
            with worker_transaction(self.using) as cursor:
                cursor.execute(
                    names.fill("sweep_purge", after_source_pk=after),
                    {"after": self.after, "limit": self.size, "source": self.names.source},
                )
                removed, self.after = cursor.fetchone()
            swept = replace(swept, purged=swept.purged + removed)
            self.pace.keep(removed, started)
        return replace(swept, seconds=time.monotonic() - self.noted, finished=not removed)
