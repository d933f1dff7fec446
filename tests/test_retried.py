"""Rows that are tried again go alone, and hold up nobody; nor do the others hold them up."""

import time

import pytest
from django.utils import timezone

from embedsync.models import Ledger
from embedsync.queue import Queue
from embedsync.worker import Worker
from tests.books import KEY, BookEmbedding, make_due
from tests.embedders import ScriptedEmbedder
from tests.library.models import Book, Parcel
from tests.owed import PARCEL_KEY
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

ParcelEmbedding = Parcel.embedding.model


@pytest.fixture
def asked(monkeypatch):
    """The calls of the slow embedder, which takes a fifth of a second for each."""
    calls, embed = [], ScriptedEmbedder.embed_documents

    def embed_documents(embedder, texts):
        calls.append(list(texts))
        time.sleep(0.2)
        return embed(embedder, texts)

    monkeypatch.setattr(ScriptedEmbedder, "embed_documents", embed_documents)
    return calls


@pytest.fixture
def suspects(drain, asked):
    """Sixty books that a dead worker has left behind."""
    drain()
    Book.objects.bulk_create([Book(id=n, title=f"old {n}") for n in range(1, 61)])
    while Queue("default", "dead").fold([KEY], 100)[0]:
        pass
    make_due()


def holds_suspect(worker):
    lanes = worker.pipeline._lanes.values()
    return any(part.alone for lane in lanes for part in lane.running.values())


def is_embedded(pk):
    return BookEmbedding.objects.filter(source_id=pk).exists()


def test_new_rows_do_not_wait_for_those_that_are_tried_again(suspects, running, asked):
    running()
    until(lambda: len(asked) > 2)
    for pk in (1001, 1002):
        Book.objects.create(id=pk, title="new")
        until(lambda: is_embedded(pk), seconds=5)  # noqa: B023
    assert BookEmbedding.objects.count() < 40
    assert all(len(texts) == 1 for texts in asked)


def test_nor_do_those_of_another_embedder(suspects, running, asked):
    for n in range(40):
        Parcel.objects.create(label=f"old {n}")
    while Queue("default", "dead").fold([PARCEL_KEY], 100)[0]:
        pass
    make_due()
    running()
    until(lambda: len(asked) > 2)
    Parcel.objects.create(id=1000, label="new")
    until(lambda: ParcelEmbedding.objects.filter(source_id=1000).exists(), seconds=2)
    assert BookEmbedding.objects.count() < 30


def test_those_that_are_tried_again_have_their_turn(suspects, running, asked):
    """However many new ones come in."""
    running(batch_size=1)
    for n in range(1000, 1040):
        Book.objects.create(id=n, title=f"new {n}")
    until(lambda: is_embedded(1039), seconds=60)
    old = [texts for texts in asked if "old" in texts[0]]
    assert 5 <= len(old) <= 30


def test_a_few_of_them_are_claimed_at_a_time(suspects, running, asked):
    running()
    until(lambda: len(asked) > 2)
    assert 0 < Ledger.objects.filter(run_at__gt=timezone.now()).count() <= 20
    until(lambda: not Ledger.objects.exists(), seconds=60)
    assert BookEmbedding.objects.count() == 60


def test_who_only_waits_while_one_is_in_hand_pays_no_attempt(suspects):
    """If it kills the worker."""
    worker = Worker()
    worker.start()
    worker.round()
    assert holds_suspect(worker)
    Book.objects.create(id=1000, title="new")
    worker._take()
    new = Ledger.objects.get(source_pk="1000")
    assert (new.token is None, new.attempts) == (False, 0)
    # As when the suspect's turn comes before that of new rows.
    assert sum(Ledger.objects.values_list("attempts", flat=True)) == 61
    worker.pipeline.let_go()
    assert Ledger.objects.get(source_pk="1000").attempts == 0


def test_new_ones_that_wait_are_spared_before_one_begins(drain, asked):
    drain()
    Book.objects.create(id=1, title="old")
    queue = Queue("default", "dead")
    queue.fold([KEY], 10)
    make_due()
    worker = Worker()
    worker.start()
    [old] = worker.queue.due([KEY], 10)
    Book.objects.create(id=2, title="new")
    _, [new] = worker.queue.fold([KEY], 10)
    worker.pipeline.accept([old, new])
    lane = worker.pipeline._lane(worker.services[KEY])
    lane._passed = 100
    worker.pipeline.advance(0.0)
    assert holds_suspect(worker)
    attempts = dict(Ledger.objects.values_list("source_pk", "attempts"))
    assert attempts == {"1": 2, "2": 0}
    until(lambda: worker.pipeline.advance(0.1) is not None and is_embedded(2))
    assert not Ledger.objects.exists()
