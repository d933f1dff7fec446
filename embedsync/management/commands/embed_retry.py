"""``manage.py embed_retry``: try parked rows again."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections

from embedsync.database import told
from embedsync.declaration import key_of
from embedsync.ledger import retry
from embedsync.status import chosen
from embedsync.words import plural


class Command(BaseCommand):
    help = "Has workers try parked rows again, as if they had never failed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "models", nargs="*", metavar="app.Model", help="sources or sidecars (default: all)"
        )
        parser.add_argument(
            "--pk", action="append", metavar="KEY", help="this row; may be given several times"
        )
        parser.add_argument("--error", metavar="TEXT", help="those whose error has this text in it")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS)

    def handle(self, *args: Any, **options: Any) -> None:
        using = options["database"]
        if using not in connections:
            raise CommandError(f"There is no database {using!r} in DATABASES.")
        try:
            sidecars = chosen(options["models"], using)
        except LookupError as error:
            raise CommandError(str(error)) from error
        if options["pk"] and len(sidecars) != 1:
            among = ", ".join(sidecar._meta.label for sidecar in sidecars)
            raise CommandError(
                f"--pk needs the one sidecar that the keys are of: name it, of {among}."
            )
        keys = [key_of(sidecar) for sidecar in sidecars]
        try:
            rows = retry(using, keys, pks=options["pk"], error=options["error"])
        except DatabaseError as error:
            raise CommandError(f"Database {using!r} failed: {told(error)}") from error
        self.stdout.write(f"{plural(rows, 'parked row')} due again")
