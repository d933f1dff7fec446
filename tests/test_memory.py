"""Faults 25 and 36: what a worker process needs of memory, whatever is owed."""

from pathlib import Path

import pytest

from embedsync.models import Inbox
from tests.application import begin, is_settled
from tests.books import KEY, BookEmbedding, execute
from tests.library.models import Book
from tests.workers import until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc"),
]

EVENTS = 1_000_000
MEGABYTE = 1_000_000


def peak(worker):
    """The most memory that a worker process has had so far, in bytes."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_a_million_events_need_no_more_memory_than_a_few(drain, worker_process):
    drain()
    worker = begin(worker_process)
    # Of rows that are gone, which leaves claims and little else.
    execute(
        "INSERT INTO embedsync_inbox (sidecar, kind, source_pk)"
        f" SELECT '{KEY}', 'row', n::text FROM generate_series(1, {EVENTS}) AS n"
    )
    last = Inbox.objects.order_by("-pk")[0].pk
    oldest = Inbox.objects.order_by("pk").values_list("pk", flat=True)
    until(lambda: last - oldest[0] < EVENTS * 0.9, seconds=200, every=0.5)
    before = peak(worker)
    until(is_settled, seconds=300, every=1)
    assert peak(worker) - before < 16 * MEGABYTE


def test_texts_of_megabytes_need_no_more_memory_for_there_being_many(drain, worker_process):
    """As much text at a time as EMBEDSYNC_BATCH_BYTES allows."""
    drain()
    worker = begin(worker_process)
    peaks = []
    for number in (30, 150):
        Book.objects.all().delete()
        execute(
            "INSERT INTO library_book (title, body, year, published)"
            " SELECT n, repeat('word ', %s), 2000, true FROM generate_series(1, %s) AS n",
            [MEGABYTE // 5, number],
        )
        until(is_settled, seconds=120, every=0.2)
        assert BookEmbedding.objects.count() == number
        peaks.append(peak(worker))
    assert peaks[1] - peaks[0] < 30 * MEGABYTE
