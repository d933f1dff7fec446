"""``manage.py embed_status``: how each sidecar is, or how its triggers are."""

import json
import time
from argparse import ArgumentParser
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.utils.timezone import localtime

from embedsync.checks.triggers import apps_of, unmigrated
from embedsync.database import is_locked, limited
from embedsync.declaration import EmbeddingModel, key_of
from embedsync.management.arguments import seconds
from embedsync.schema import schema_errors
from embedsync.status import (
    COUNTED,
    EmbedderStatus,
    Fill,
    SidecarStatus,
    WorkerStatus,
    chosen,
    embedders,
    statuses,
    workers,
)
from embedsync.triggers import TriggerState, has_relation, trigger_states
from embedsync.words import plural

COLUMNS = ("sidecar", "rows", "cut", "waiting", "leased", "parked", "oldest s", "rows/s", "fill")
LOCK_SECONDS = 5.0
CLEAR = "\x1b[H\x1b[2J"  # of a terminal


class Command(BaseCommand):
    help = "Tells what is embedded, what waits and what is wrong; with --triggers, of the triggers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "models",
            nargs="*",
            metavar="app.Model",
            help="sources or sidecars to tell of (default: all)",
        )
        parser.add_argument(
            "--triggers",
            action="store_true",
            help="list all triggers; exits 1 where one is not installed",
        )
        parser.add_argument(
            "--max-lag",
            type=seconds,
            metavar="S",
            help="exit 1 where a row has waited for longer, or a fill waits for a worker",
        )
        parser.add_argument(
            "--watch",
            type=seconds,
            nargs="?",
            const=2.0,
            metavar="S",
            help="tell again every so many seconds (default: 2), until Ctrl-C",
        )
        parser.add_argument("--json", action="store_true", help="for programs to read")
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            help="the database to look at (default: default)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        using, labels = options["database"], options["models"]
        if using not in connections:
            raise CommandError(f"There is no database {using!r} in DATABASES.")
        if connections[using].vendor != "postgresql":
            raise CommandError(f"Database {using!r} is not PostgreSQL.")
        try:
            wanted = chosen(labels, using)
        except LookupError as error:
            raise CommandError(str(error)) from None
        try:
            if not has_relation(using, "embedsync_inbox"):
                raise CommandError(f"Database {using!r} has no tables of embedsync: run migrate.")
            if options["watch"] is not None and not options["triggers"]:
                self.watch(using, wanted, options["watch"])
                return
            with limited(using, lock_timeout=LOCK_SECONDS):
                if options["triggers"]:
                    self.triggers(using, wanted, chosen=bool(labels), as_json=options["json"])
                else:
                    self.sidecars(
                        using, wanted, as_json=options["json"], max_lag=options["max_lag"]
                    )
        except DatabaseError as error:
            first = str(error).partition("\n")[0]
            if is_locked(error):
                first = f"a table has been locked for {LOCK_SECONDS:g} s: {first}"
            raise CommandError(f"Database {using!r}: {first}") from error

    def watch(self, using: str, wanted: list[type[EmbeddingModel]], every: float) -> None:
        with suppress(KeyboardInterrupt):
            while True:
                with limited(using, lock_timeout=LOCK_SECONDS):
                    found, alive = statuses(using, wanted), workers(using)
                    used = embedders(using, wanted)
                self.stdout.write(CLEAR if self.stdout.isatty() else "", ending="")
                self.show(found, alive, used)
                time.sleep(every)

    def sidecars(
        self,
        using: str,
        wanted: list[type[EmbeddingModel]],
        *,
        as_json: bool,
        max_lag: float | None,
    ) -> None:
        found, known = statuses(using, wanted), workers(using)
        used = embedders(using, wanted)
        if as_json:
            listed = [
                {
                    **asdict(worker),
                    "serves": sorted(worker.serves),
                    "started_at": worker.started_at.isoformat(),
                }
                for worker in known
            ]
            self.write_json(
                database=using,
                sidecars=[asdict(status) for status in found],
                workers=listed,
                embedders=[asdict(status) for status in used],
            )
        else:
            self.show(found, known, used)
        wrong = [status.sidecar for status in found if not status.is_well]
        if wrong:
            raise CommandError(f"Not served: {', '.join(wrong)}.")
        late = [one for one in found if max_lag is not None and one.oldest_wait > max_lag]
        if late:
            said = ", ".join(f"{one.sidecar} for {one.oldest_wait:.1f} s" for one in late)
            raise CommandError(f"Rows have waited for more than {max_lag:g} s: {said}.")
        # What a fill has before it waits nowhere yet, so that nothing tells for how long.
        served = {key for worker in known if worker.is_alive for key in worker.serves}
        idle = [one.sidecar for one in found if one.awaits_fill and one.sidecar not in served]
        if idle and max_lag is not None:
            raise CommandError(f"A fill is owed and no worker alive serves it: {', '.join(idle)}.")

    def show(
        self, found: list[SidecarStatus], known: list[WorkerStatus], used: list[EmbedderStatus]
    ) -> None:
        lines = [COLUMNS, *map(cells, found)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        errors = [
            [],
            *([one.schema_error, one.error, one.last_error, index_in_words(one)] for one in found),
        ]
        for line, more in zip(lines, errors, strict=True):
            first, *numbers, last = line
            padded = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)]
            self.stdout.write("  ".join([first.ljust(widths[0]), *padded, last]))
            for error in filter(None, more):
                self.stdout.write(f"    {error}")

        alive = sum(worker.is_alive for worker in known)
        self.stdout.write(f"\n{alive or 'no'} worker{'' if alive == 1 else 's'} alive")
        for worker in known:
            word = worker.doing or "idle" if worker.is_alive else "silent, probably dead"
            self.stdout.write(
                f"  {worker.name}  {word}; {plural(worker.settled)} since"
                f" {localtime(worker.started_at):%Y-%m-%d %H:%M}, seen {worker.seen:.0f} s ago"
            )

        told = [embedder for embedder in used if embedder.calls or embedder.is_limited]
        if told:
            self.stdout.write("\nembedders, in 24 hours")
        for embedder in told:
            self.stdout.write(f"  {usage_in_words(embedder)}")

    def triggers(
        self, using: str, wanted: list[type[EmbeddingModel]], *, chosen: bool, as_json: bool
    ) -> None:
        found, keys = trigger_states(using), {key_of(sidecar) for sidecar in wanted}
        if chosen:  # or else those of no sidecar are told of, too
            found = [trigger for trigger in found if trigger.key in keys]
        errors = schema_errors(using, wanted)
        if as_json:
            listed = [asdict(trigger) for trigger in found]
            self.write_json(database=using, triggers=listed, schema_errors=errors)
        else:
            self.list_triggers(found, errors)
        wrong = sum(trigger.state != "installed" for trigger in found)
        if wrong or errors:
            concerned = set().union(*map(apps_of, wanted))
            cure = "migrate" if unmigrated(connections[using]) & concerned else "check"
            raise CommandError(
                f"Not installed: {wrong} of {len(found)} triggers. Sidecars with a schema error:"
                f" {len(errors)}. What to do: manage.py {cure} --database {using}."
            )

    def list_triggers(self, found: list[TriggerState], errors: dict[str, str]) -> None:
        for key in sorted({*errors, *(trigger.key for trigger in found)}):
            self.stdout.write(key)
            if key in errors:
                self.stdout.write(f"  {errors[key]}")
            mine = [trigger for trigger in found if trigger.key == key]
            for table, triggers in groupby(mine, lambda trigger: trigger.table):
                self.stdout.write(f"  {table}")
                for trigger in triggers:
                    self.stdout.write(f"    {trigger.state:<9}  {trigger.name}")

    def write_json(self, **values: Any) -> None:
        self.stdout.write(json.dumps(values, indent=2))


def cells(status: SidecarStatus) -> tuple[str, ...]:
    """A line of the table."""
    rows = "?" if status.rows is None else str(status.rows)
    cut = "?" if status.cut is None else str(status.cut)
    numbers = (status.waiting, status.leased, status.parked)
    return (
        status.sidecar,
        f"~{rows}" if status.rows_are_estimated else rows,
        cut,
        *map(str, numbers),
        f"{status.oldest_wait:.1f}",
        f"{status.rate:.1f}",
        fill_in_words(status.fill),
    )


def usage_in_words(status: EmbedderStatus) -> str:
    said = f"{status.embedder}  calls: {status.calls}, tokens: {status.tokens}"
    for what, granted, limit in (
        ("rows", status.granted_rows, status.rows_per_minute),
        ("tokens", status.granted_tokens, status.tokens_per_minute),
    ):
        if limit is not None:
            said += f"; {granted} of {limit} {what} of this minute"
    return said


def fill_in_words(fill: Fill) -> str:
    if fill.left is None:
        return fill.state
    over = "over " if fill.left >= COUNTED else ""
    return f"{fill.state}, {over}{fill.left} to go"


def index_in_words(status: SidecarStatus) -> str:
    """What somebody has to do about an index, "" where that is nothing."""
    index = status.index
    if not index.is_due:
        return ""
    why = "its building was broken off"
    if index.changed is not None:
        why = f"{index.changed:.0%} of its rows have changed since it was built"
    return f"index due for REINDEX, {why}: manage.py embed_reindex {status.sidecar}"
