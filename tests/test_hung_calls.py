"""Calls that are never answered, beside others that are."""

import threading
import time

import pytest

from embedsync import pipeline
from embedsync.models import Ledger
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
