"""Fault 17: a provider that allows so many calls and asks for a pause after them."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from embedsync.models import Ledger
from tests.application import begin, is_settled
from tests.books import KEY, BookEmbedding
from tests.library.models import Book
from tests.provider import running_provider
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

CONCURRENCY = 4
ALLOWED = 6  # calls
PAUSE = 1.0  # seconds
UNDER_WAY = 0.8  # seconds, within which a call that was begun before arrives


class Limit:
    """Allows ``ALLOWED`` calls after each pause; ``calls`` are when each began and ended, and when
    the pause ends that it was answered with."""

    def __init__(self, provider, *, date):
        self.calls = []
        self._provider = provider
        self._date = date
        self._allowed = ALLOWED
        self._ends = 0.0
        self._lock = threading.Lock()

    def __call__(self, texts):
        began = time.monotonic()
        with self._lock:
            if self._ends and began >= self._ends:
                self._allowed, self._ends = ALLOWED, 0.0
            self._allowed -= 1
            refused = self._allowed < 0
            if refused and not self._ends:
                self._ends = began + PAUSE
        time.sleep(0.05)
        self.calls.append((began, time.monotonic(), self._ends if refused else None))
        if refused:
            return 429, {"Retry-After": self._after()}, {"error": "slow down"}
        return self._provider.works(texts)

    def _after(self):
        if not self._date:
            return f"{self._ends - time.monotonic():.3f}"
        # Of whole seconds: the next one that is not too early.
        left = timedelta(seconds=self._ends - time.monotonic() + 1)
        return format_datetime(datetime.now(UTC) + left, usegmt=True)


@pytest.mark.parametrize("date", [False, True], ids=["seconds", "HTTP date"])
def test_all_calls_of_a_process_wait_for_the_end_of_a_pause(drain, worker_process, date):
    drain()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(64 * 8)])
    more = {"DJANGO_SETTINGS_MODULE": "tests.provider_settings"}
    charged = Ledger.objects.filter(sidecar=KEY, token=None, attempts__gt=0)
    with running_provider() as provider:
        provider.answer = limit = Limit(provider, date=date)
        begin(
            lambda **given: worker_process("--concurrency", str(CONCURRENCY), **given),
            PROVIDER_OF_TESTS=provider.url,
            **more,
        )
        until(lambda: charged.exists() or is_settled(), seconds=60)
    assert not charged.exists()
    assert_in_step(BookEmbedding)
    calls = sorted(limit.calls)
    pauses = sorted({ends for *_, ends in calls if ends})
    assert len(pauses) >= 2
    for ends in pauses:
        refused = [began for began, _, until_then in calls if until_then == ends]
        # No more than were under way when the first of them was refused.
        assert len(refused) <= CONCURRENCY
        assert max(refused) - min(refused) < UNDER_WAY
        probe, *others = [call for call in calls if call[0] > max(refused)]
        assert probe[0] >= ends
        assert all(began >= probe[1] for began, *_ in others)
