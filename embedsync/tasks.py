"""What a scheduler runs: plain functions for django-q2, Celery and their like."""

import logging
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from embedsync.sweep import RATE, Pace, sidecars_in, sweep_all
from embedsync.swept import report

logger = logging.getLogger("embedsync")


def sweep(
    repair: bool = True,
    max_seconds: float | None = 48.0,
    database: str = DEFAULT_DB_ALIAS,
    rate: float = RATE,
) -> dict[str, Any]:
    """Compare all rows with their vectors for at most so many seconds; the next call goes on there.

    Returns what ``embed_sweep --json`` prints. Calls that overlap do no harm. What cannot be
    compared is in the log and in what is returned; it raises no error, because a scheduler would
    try it again and again.
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
