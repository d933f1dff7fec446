"""What a command does when it is told to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

EXIT_AT_ONCE = 130  # what a shell reports for a program ended by Ctrl-C


class Stoppable(Protocol):
    """What ends in order once it is told to."""

    stopping: bool

    def stop(self) -> None: ...


@contextmanager
def obeyed_signals(task: Stoppable) -> Iterator[None]:
    """SIGTERM and SIGINT stop the task in order, a second one ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if task.stopping:
            os._exit(EXIT_AT_ONCE)
        task.stop()

    if threading.current_thread() is not threading.main_thread():
        yield  # where Python takes no signals
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
