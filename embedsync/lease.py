"""Keeping leases alive while texts are being embedded."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from django.db import DatabaseError, InterfaceError, connections

from embedsync.claim import Claim
from embedsync.conf import settings
from embedsync.queue import Queue

logger = logging.getLogger("embedsync")


class LeaseKeeper:
    """Extends the leases of claims at each third of the lease, from a thread of its own.

    A thread, because the worker's own may be busy for long, but not for ever: where it is
    ``stuck``, others are to take its rows over.
    """

    def __init__(
        self, queue: Queue, claims: list[Claim], stuck: Callable[[], bool] = lambda: False
    ) -> None:
        self._queue = queue
        self._claims = claims
        self._stuck = stuck
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="embedsync-lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _keep(self) -> None:
        # The thread's connection is opened when it first extends, which short work never does.
        while not self._ended.wait(settings.lease / 3):
            if self._stuck():
                continue
            for claim in list(self._claims):  # the worker takes out what it has done
                try:
                    self._queue.extend(claim)
                except (DatabaseError, InterfaceError) as error:
                    logger.warning("a lease could not be extended: %s", error)
        connections[self._queue.using].close()
