"""``manage.py embed_worker``: embed what has changed, until told to stop."""

import logging
import os
import time
import traceback
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections

from embedsync.management.arguments import port, seconds, whole_number
from embedsync.management.metrics import serve_metrics
from embedsync.management.signals import obeyed_signals
from embedsync.progress import drain_progress
from embedsync.status import chosen
from embedsync.words import plural
from embedsync.worker import Worker

logger = logging.getLogger("embedsync")


class Command(BaseCommand):
    help = "Embeds rows that have changed or were there before. Run as many as you like."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--drain", action="store_true", help="end when nothing is due, instead of waiting"
        )
        parser.add_argument(
            "--max-seconds", type=seconds, metavar="S", help="end after so many seconds, in order"
        )
        parser.add_argument(
            "--only",
            action="append",
            default=[],
            metavar="app.Model",
            help="serve this source or sidecar alone; may be given several times",
        )
        parser.add_argument(
            "--batch-size",
            type=whole_number,
            metavar="N",
            help="rows to claim at a time (default: EMBEDSYNC_BATCH_SIZE)",
        )
        parser.add_argument(
            "--concurrency",
            type=whole_number,
            metavar="N",
            help="calls of an embedder to make at a time (default: EMBEDSYNC_CONCURRENCY)",
        )
        parser.add_argument(
            "--alive-file",
            type=Path,
            metavar="FILE",
            help="touch this file as long as the worker gets on",
        )
        parser.add_argument(
            "--poll-interval",
            type=seconds,
            metavar="S",
            help="seconds to wait when there is nothing to do (default: EMBEDSYNC_POLL_INTERVAL)",
        )
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, help="the database to serve (default: default)"
        )
        parser.add_argument(
            "--metrics-port", type=port, metavar="N", help="count for Prometheus on this TCP port"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["database"] not in connections:
            raise CommandError(f"There is no database {options['database']!r} in DATABASES.")
        if options["verbosity"] and not logger.hasHandlers():
            self.show_log()
        try:
            only = chosen(options["only"], options["database"]) if options["only"] else None
        except LookupError as error:
            raise CommandError(str(error)) from error
        if options["metrics_port"]:
            serve_metrics(options["metrics_port"])
        worker = Worker(
            options["database"],
            only=only,
            batch_size=options["batch_size"],
            poll_interval=options["poll_interval"],
            concurrency=options["concurrency"],
            alive=options["alive_file"],
        )
        try:
            with obeyed_signals(worker):
                if options["drain"]:
                    self.drain(worker, options["max_seconds"])
                else:
                    worker.run(max_seconds=options["max_seconds"])
        except Exception:
            if self.is_to_leave(worker):
                self.leave(traceback.format_exc())
            raise
        said = "\n".join(f"{key} is not served: {error}" for key, error in worker.errors.items())
        if self.is_to_leave(worker):
            self.leave(said)
        if said:
            raise CommandError(said)

    def drain(self, worker: Worker, max_seconds: float | None) -> None:
        try:
            worker.start()
        except OperationalError as error:
            raise CommandError(f"Database {worker.using!r} does not answer: {error}") from error
        if not worker.services:
            return
        started, progress = time.monotonic(), drain_progress(worker.pending())
        worker.progress = progress.update
        try:
            worker.run(drain=True, max_seconds=max_seconds)
        finally:
            progress.close()
        # Not a sum: a row that an event has brought may be looked at by a fill once more.
        embedded, settled = worker.heartbeat.embedded, worker.heartbeat.settled
        logger.info(
            "%s embedded in %.1f s, %s looked at that needed no embedding",
            *(plural(embedded), time.monotonic() - started, plural(settled - embedded)),
        )
        waiting, parked = worker.queue.left(list(worker.services))
        if waiting or parked:
            logger.warning(
                "%s to wait for a later attempt or another worker, %s parked",
                *(plural(waiting), plural(parked)),
            )

    def is_to_leave(self, worker: Worker) -> bool:
        """Whether a call goes on that the interpreter would wait for.

        But a program of the project's that has called this command would end with it.
        """
        is_own_process = getattr(self, "_called_from_command_line", False)
        return worker.pipeline.has_abandoned and (worker.stopping or is_own_process)

    def leave(self, said: str) -> None:
        """End at once: the interpreter would wait for what has not ended within EMBEDSYNC_GRACE."""
        logger.warning("a call, or the loading of a model, has not ended: its rows are handed back")
        if said:
            self.stderr.write(said)
        logging.shutdown()
        self.stdout.flush()
        os._exit(1 if said else 0)

    def show_log(self) -> None:
        """Show embedsync's log where the project has configured no logging for it."""
        handler = logging.StreamHandler(self.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
