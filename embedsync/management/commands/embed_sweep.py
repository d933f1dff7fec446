"""``manage.py embed_sweep``: compare all rows with their vectors, report, and repair if asked."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import (
    DEFAULT_DB_ALIAS,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
)

from embedsync.database import told
from embedsync.declaration import EmbeddingModel
from embedsync.management.arguments import from_zero, whole_number
from embedsync.management.signals import obeyed_signals
from embedsync.progress import Progress, drain_progress
from embedsync.status import chosen, statuses
from embedsync.sweep import PAGE, RATE, Pace, estimate, sweep_all
from embedsync.swept import KINDS, Swept, report
from embedsync.words import plural


class Command(BaseCommand):
    help = (
        "Compares all rows with their vectors. Exits 1 where some differ and are not enqueued, or"
        " where something could not be compared."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("models", nargs="*", metavar="app.Model", help="sources or sidecars (default: all)")
        add("--repair", action="store_true", help="enqueue the rows that differ, for workers")
        add("--database", default=DEFAULT_DB_ALIAS, help="default: default")
        add(
            "--rate",
            type=from_zero,
            default=RATE,
            metavar="ROWS",
            help=f"rows a second, 0 for as fast as it goes (default: {RATE:.0f})",
        )
        add(
            "--page",
            type=whole_number,
            default=PAGE,
            metavar="ROWS",
            help=f"rows to read at a time (default: {PAGE})",
        )
        add(
            "--max-seconds",
            type=from_zero,
            metavar="S",
            help="end after so many; the next sweep goes on there",
        )
        add("--restart", action="store_true", help="begin at the first row")
        add(
            "--purge",
            action="store_true",
            help="remove the vectors of sources whose table is gone",
        )
        add("--json", action="store_true", help="print one JSON document")

    def handle(self, *args: Any, **options: Any) -> None:
        using = options["database"]
        if using not in connections:
            raise CommandError(f"There is no database {using!r} in DATABASES.")
        try:
            wanted = chosen(options["models"], using)
        except LookupError as error:
            raise CommandError(str(error)) from None
        pace = Pace(options["rate"], options["max_seconds"])
        found: list[Swept] = []
        errors: dict[str, str] = {}
        failure: Exception | None = None
        with obeyed_signals(pace), self.progress(wanted, options) as progress:
            try:
                for swept in sweep_all(
                    wanted,
                    using,
                    pace=pace,
                    repair=options["repair"],
                    purge=options["purge"],
                    restart=options["restart"],
                    page=options["page"],
                    progress=progress,
                ):
                    found.append(swept)
                # What is owed is no drift; but as long as a provider refuses nobody sees to it.
                errors = {
                    each.sidecar: each.error for each in statuses(using, wanted) if each.error
                }
            except (OperationalError, InterfaceError, ProgrammingError) as error:
                failure = error
        result = {**report(using, wanted, found), "errors": errors}
        if options["json"]:
            self.stdout.write(json.dumps(result))
        elif options["verbosity"]:
            self.show(found, options)
            for label in [] if failure else result["not_begun"]:
                self.stdout.write(f"{label}: not begun, the time is up")
            if not wanted:
                self.stdout.write(f"Nothing is embedded in database {using!r}.")
        if failure:
            raise CommandError(
                f"Database {using!r} failed: {told(failure)}\n"
                "The next sweep goes on where this one has ended."
            )
        for sidecar, said in errors.items():
            self.stderr.write(f"{sidecar} is not embedded: {said}")
        if errors or not result["ok"]:
            sys.exit(1)

    @contextmanager
    def progress(
        self, wanted: Sequence[type[EmbeddingModel]], options: dict[str, Any]
    ) -> Iterator[Callable[[int], object]]:
        """What is called with numbers of rows; shown on a terminal only."""
        if not options["verbosity"] or not sys.stderr.isatty():
            yield lambda rows: None
            return
        shown: Progress = drain_progress(estimate(wanted, options["database"]))
        if hasattr(shown, "set_description"):
            shown.set_description("sweeping")
        try:
            yield shown.update
        finally:
            shown.close()

    def show(self, found: list[Swept], options: dict[str, Any]) -> None:
        """The report for people."""
        for swept in found:
            if swept.error:
                self.stderr.write(f"{swept.sidecar} was not compared: {swept.error}")
                continue
            self.stdout.write(str(swept))
            for kind in KINDS:
                keys = swept.examples.get(kind)
                if keys:
                    more = ", ..." if getattr(swept, kind) > len(keys) else ""
                    self.stdout.write(f"  {kind}: {', '.join(map(shown_key, keys))}{more}")
            for line in self.advice(swept, options):
                self.stdout.write(f"  {line}")

    def advice(self, swept: Swept, options: dict[str, Any]) -> Iterator[str]:
        """What has been done, and what is to be done."""
        if swept.resumed:
            yield f"went on where an earlier sweep had stopped, after {plural(swept.resumed)}"
        if not swept.finished:
            yield "stopped before the end; the next sweep goes on there"
        if swept.enqueued:
            yield f"{swept.enqueued:,} enqueued; workers will see to them"
        elif swept.source_is_gone:
            if swept.purged < swept.orphaned:
                yield "remove its declaration in a migration, or the vectors with --purge"
        elif swept.drift:
            yield "have them embedded anew with --repair"


def shown_key(key: str) -> str:
    """A key as it may be printed."""
    return key if key.isprintable() else repr(key)
