"""What a scheduler runs: plain functions for django-q2, Celery and their like."""

import logging
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from embedsync.database import worker_transaction
from embedsync.declaration import sidecars_in
from embedsync.state import note_served
from embedsync.sweep import RATE, Pace, sweep_all
from embedsync.swept import report
from embedsync.worker import Worker

logger = logging.getLogger("embedsync")


def process_pending(
    max_seconds: float = 45.0, database: str = DEFAULT_DB_ALIAS
) -> dict[str, int | dict[str, str]]:
    """Embed what has changed, for at most so many seconds: a worker for who has only a scheduler.

    Returns how many rows were ``settled``, are ``waiting`` and are ``parked``, and ``errors`` by
    sidecar. Calls that overlap share the work; with nothing to do, one costs some queries and loads
    no model. It raises no error for a text or a provider: the rows wait in the ledger; and
    ``OperationalError`` where the database does not answer when it begins.

    A call of an embedder that is being made then has a fifth of ``max_seconds`` more; after that
    its rows are handed back, with no attempt counted. So it ends before a scheduler that allows it
    a quarter more would kill it, for which a text that is not to blame would pay.
    """
    settled = 0

    def count(rows: int) -> None:
        nonlocal settled
        settled += rows

    worker = Worker(database, count)
    worker.start()
    with worker_transaction(database) as cursor:
        note_served(cursor, list(worker.services))
    worker.run(drain=True, max_seconds=max_seconds, grace=max_seconds / 5)
    waiting, parked = worker.queue.left(list(worker.services))
    return {"settled": settled, "waiting": waiting, "parked": parked, "errors": worker.errors}


def sweep(
    repair: bool = True,
    max_seconds: float | None = 48.0,
    database: str = DEFAULT_DB_ALIAS,
    rate: float = RATE,
) -> dict[str, Any]:
    """Compare all rows with their vectors for at most so many seconds; the next call goes on there.

    Returns what ``embed_sweep --json`` prints. Calls that overlap do no harm. What cannot be
    compared is in the log and in what is returned, and no error, because a scheduler would try it
    again and again. Raises ``OperationalError`` where the database itself does not answer.
    """
    chosen = sidecars_in(database)
    found = []
    for swept in sweep_all(chosen, database, pace=Pace(rate, max_seconds), repair=repair):
        if swept.error:
            logger.error("%s was not compared: %s", swept.sidecar, swept.error)
        else:
            level = logging.WARNING if swept.drift else logging.INFO
            logger.log(level, "%s; %d enqueued", swept, swept.enqueued)
        found.append(swept)
    return report(database, chosen, found)
