"""Calls that are never answered, beside others that are."""

import threading
import time

import pytest
from django.utils import timezone

from embedsync import pipeline, tasks
from embedsync.models import Ledger
from embedsync.signals import embeddings_updated
from tests.embedders import ScriptedEmbedder
from tests.library.models import Book
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def hanging(monkeypatch):
    """Calls for a text with HANG in it are answered when this is set."""
    answered, embed = threading.Event(), ScriptedEmbedder.embed_documents

    def embed_documents(embedder, texts):
        if any("HANG" in text for text in texts):
            answered.wait(60)
        return embed(embedder, texts)

    monkeypatch.setattr(ScriptedEmbedder, "embed_documents", embed_documents)
    yield answered
    answered.set()


def test_a_call_that_hangs_beside_others_is_noticed(drain, settings, monkeypatch, hanging, running):
    """Its rows are left to other workers, and those of the same claim are not."""
    drain()
    monkeypatch.setattr(pipeline, "HUNG_SECONDS", 1.0)
    settings.EMBEDSYNC_LEASE = 0.9
    settings.EMBEDSYNC_GRACE = 0.0
    Book.objects.create(id=1, title="HANG")
    worker = running(concurrency=2)
    until(lambda: Ledger.objects.filter(source_pk="1").exclude(token=None).exists())
    first = Ledger.objects.get(source_pk="1").token
    for n in range(2, 22):
        Book.objects.create(id=n, title=f"Book {n}")
        time.sleep(0.2)
    assert worker.pipeline.stuck_seconds > 2
    owed = Ledger.objects.get(source_pk="1")
    # Its lease has run out, and its own worker has taken it over, as any would.
    assert owed.token != first


def test_a_worker_that_is_stuck_itself_lets_its_leases_run_out(
    drain, settings, monkeypatch, running
):
    """In a receiver of a signal, or a model's method."""
    drain()
    monkeypatch.setattr(pipeline, "HUNG_SECONDS", 0.5)
    settings.EMBEDSYNC_LEASE = 0.6
    stuck, goes_on = threading.Event(), threading.Event()

    def receive(**arguments):
        stuck.set()
        goes_on.wait(60)

    embeddings_updated.connect(receive, sender=Book)
    try:
        Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(400)])
        running(concurrency=2)
        assert stuck.wait(30)
        held = Ledger.objects.exclude(token=None)
        assert held.exists()
        until(lambda: not held.filter(run_at__gt=timezone.now()).exists(), seconds=10)
    finally:
        goes_on.set()
        embeddings_updated.disconnect(receive, sender=Book)


def test_a_scheduled_run_hands_back_what_takes_too_long(drain, hanging):
    """Or its scheduler kills it, and the row pays for that."""
    drain()
    Book.objects.create(title="HANG")
    began = time.monotonic()
    assert tasks.process_pending(max_seconds=1)["waiting"] == 1
    assert 1.1 < time.monotonic() - began < 5
    row = Ledger.objects.get()
    assert (row.token, row.attempts) == (None, 0)
