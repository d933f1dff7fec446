"""``manage.py embed_reindex``: build indexes of vectors anew where too much has changed."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from embedsync.management.arguments import seconds
from embedsync.reindexing import Reindexed, reindex
from embedsync.status import chosen

COLUMNS = ("sidecar", "index", "MB before", "MB after", "s", "")
PATIENCE = 60.0  # seconds


class Command(BaseCommand):
    help = "Builds indexes anew, CONCURRENTLY, that embed_status calls due."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "models", nargs="*", metavar="app.Model", help="sources or sidecars (default: all)"
        )
        parser.add_argument("--all", action="store_true", help="those that are not due, too")
        parser.add_argument(
            "--patience",
            type=seconds,
            default=PATIENCE,
            metavar="S",
            help="wait for other transactions for at most so many seconds (default: 60)",
        )
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS)

    def handle(self, *args: Any, **options: Any) -> None:
        using = options["database"]
        if using not in connections:
            raise CommandError(f"There is no database {using!r} in DATABASES.")
        if connections[using].in_atomic_block:
            raise CommandError("REINDEX CONCURRENTLY cannot run in a transaction.")
        try:
            sidecars = chosen(options["models"], using)
        except LookupError as error:
            raise CommandError(str(error)) from None
        found = []
        try:
            for sidecar in sidecars:
                found.append(
                    reindex(using, sidecar, every=options["all"], patience=options["patience"])
                )
        except DatabaseError as error:
            first = str(error).partition("\n")[0]
            raise CommandError(f"Database {using!r}: {first}") from error
        finally:
            self.show(found)
        failed = [one.index for one in found if one.is_failure]
        if failed:
            raise CommandError(f"Not built: {', '.join(failed)}.")

    def show(self, found: list[Reindexed]) -> None:
        lines = [COLUMNS, *map(cells, found)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for sidecar, index, *numbers, said in lines:
            padded = [cell.rjust(width) for cell, width in zip(numbers, widths[2:], strict=False)]
            names = [sidecar.ljust(widths[0]), index.ljust(widths[1])]
            self.stdout.write("  ".join([*names, *padded, said]).rstrip())


def cells(one: Reindexed) -> tuple[str, ...]:
    """A line of the table."""
    numbers = ("", "", "")
    if one.seconds:
        numbers = (f"{one.before / 1e6:.1f}", f"{one.after / 1e6:.1f}", f"{one.seconds:.1f}")
    return (one.sidecar, one.index, *numbers, one.said)
