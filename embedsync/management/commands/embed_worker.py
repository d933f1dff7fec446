"""``manage.py embed_worker``: embed what has changed, until told to stop."""

import logging
import os
import signal
from argparse import ArgumentParser
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections

from embedsync.progress import drain_progress
from embedsync.worker import Worker

logger = logging.getLogger("embedsync")

EXIT_AT_ONCE = 130  # what a shell reports for a program ended by Ctrl-C


class Command(BaseCommand):
    help = "Embeds rows that have changed or were there before. Run as many as you like."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--drain", action="store_true", help="end when nothing is due, instead of waiting"
        )
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, help="the database to serve (default: default)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["database"] not in connections:
            raise CommandError(f"There is no database {options['database']!r} in DATABASES.")
        if options["verbosity"] and not logger.hasHandlers():
            self.show_log()
        worker = Worker(options["database"])
        self.obey_signals(worker)
        if options["drain"]:
            self.drain(worker)
        else:
            worker.run()
        if worker.errors:
            raise CommandError(
                "\n".join(f"{key} is not served: {error}" for key, error in worker.errors.items())
            )

    def drain(self, worker: Worker) -> None:
        try:
            worker.start()
        except OperationalError as error:
            raise CommandError(f"Database {worker.using!r} does not answer: {error}") from error
        if not worker.services:
            return
        progress = drain_progress(worker.pending())
        worker.progress = progress.update
        try:
            worker.run(drain=True)
        finally:
            progress.close()
        waiting, parked = worker.queue.left(list(worker.served))
        if waiting or parked:
            logger.warning(
                "%d rows wait for a later attempt or another worker, %d are parked", waiting, parked
            )

    def show_log(self) -> None:
        """Show embedsync's log where the project has configured no logging for it."""
        handler = logging.StreamHandler(self.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

    def obey_signals(self, worker: Worker) -> None:
        """The first signal stops the worker in order, the second at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            if worker.stopping:
                os._exit(EXIT_AT_ONCE)
            worker.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
