"""Calls that are never answered, and other things that hang."""

import signal
import threading
import time

import pytest
from django.db.models import Q
from django.utils import timezone

from embedsync import pipeline, service, tasks
from embedsync.embedders.trouble import HARMLESS
from embedsync.models import Ledger
from embedsync.queue import Queue
from embedsync.signals import embeddings_updated
from embedsync.splitter import Splitter
from tests.application import Application, is_settled
from tests.books import KEY, BookEmbedding, make_due
from tests.library.models import Book, Parcel
from tests.long_texts import KEY as ARTICLES
from tests.long_texts import stored, write
from tests.provider import running_provider
from tests.sync import assert_in_step
from tests.workers import until

ParcelEmbedding = Parcel.embedding.model

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_text_that_its_embedder_hangs_in_is_parked(impatient, hanging, running, concurrency):
    """And no other, though all were in its call."""
    books = [Book(id=n, title="HANG" if n == 7 else f"Book {n}") for n in range(1, 31)]
    Book.objects.bulk_create(books)
    worker = running(concurrency=concurrency)
    parked = Ledger.objects.filter(run_at=None)
    until(lambda: BookEmbedding.objects.count() == 29 and parked.exists())
    row = Ledger.objects.get()
    assert (row.source_pk, row.attempts) == ("7", 2)
    assert row.last_error == "UnansweredError: no answer in 0 s"
    # It gets on: nobody needs to start it anew.
    assert worker.pipeline.stuck_seconds < 0.5


def test_one_that_is_alone_in_the_world_is_found_too(impatient, hanging, running):
    """Whether its embedder answers anything at all is asked with another text."""
    Book.objects.create(title="HANG")
    running()
    until(lambda: Ledger.objects.filter(run_at=None).exists())
    assert Ledger.objects.get().attempts == 2


def test_what_is_tried_again_pays_for_no_silence(impatient, scripted, running):
    """It is alone in a call, and its provider answers nobody."""
    answered, calls = threading.Event(), []
    scripted(lambda texts: (calls.append(texts), answered.wait(60)))
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(3)])
    Queue("default", "dead").fold([KEY], 10)
    make_due()
    running()
    try:
        until(lambda: len(calls) >= 6)
        assert set(Ledger.objects.filter(token=None).values_list("attempts", flat=True)) <= {1}
        assert not Ledger.objects.filter(run_at=None).exists()
    finally:
        answered.set()
    until(is_settled)
    assert_in_step(BookEmbedding)


def test_a_row_that_changes_is_another_text(impatient, hanging, running):
    Book.objects.create(title="HANG")
    running()
    until(Ledger.objects.filter(last_error__startswith="UnansweredError").exists)
    Book.objects.update(title="harmless")
    until(lambda: BookEmbedding.objects.exists() and not Ledger.objects.exists())
    assert_in_step(BookEmbedding)


def test_a_model_that_never_loads_blames_no_row(impatient, monkeypatch, running):
    loaded, tries = threading.Event(), []

    def hangs(*given):
        tries.append(given)
        loaded.wait(60)
        return Splitter(*given)

    monkeypatch.setattr(service, "Splitter", hangs)
    articles = [write("one", "two") for _ in range(3)]
    running()
    try:
        until(lambda: len(tries) >= 4)
        owed = Ledger.objects.filter(sidecar=ARTICLES, attempts__gt=1)
        assert not owed.exists()
    finally:
        loaded.set()
    until(lambda: all(stored(article) for article in articles))
    until(lambda: not Ledger.objects.exists())


def test_a_provider_that_drips_costs_no_attempt(impatient, worker_process):
    """Fault 18: a byte now and then is in time for each read, and the answer takes a minute."""
    more = {"DJANGO_SETTINGS_MODULE": "tests.provider_settings", "HUNG_SECONDS": "0.5"}
    with running_provider() as provider:
        provider.drips()
        worker = worker_process(steps=True, PROVIDER_OF_TESTS=provider.url, **more)
        worker.says("serving")
        with Application(writers=2) as application:
            for probes in range(4, 12, 2):
                until(lambda probes=probes: len(provider.calls) >= probes)
                application.work(10)
            owed = Ledger.objects.filter(sidecar=KEY)
            assert not owed.filter(run_at=None).exists()
            # Counted when it is claimed, and refunded when it comes back.
            assert not owed.filter(Q(attempts__gt=1) | Q(token=None, attempts=1)).exists()
            Parcel.objects.create(label="of another provider")
            until(lambda: ParcelEmbedding.objects.exists())
        # Only whether it answers is asked, and not what it answers to each row.
        assert provider.calls[2:] == [[HARMLESS]] * len(provider.calls[2:])
        provider.pieces = lambda body: [body]
        until(is_settled, seconds=10)
        assert_in_step(BookEmbedding)
        # Some of its calls go on; it ends all the same.
        worker.send(signal.SIGTERM)
        status, output = worker.wait(10)
    assert status == 0
    assert "waits" in output
    assert "no answer in 0 s" in output
    assert "a call, or the loading of a model, has not ended" in output


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
