"""Batches on their way: read, embedded and written at the same time, bounded, several at a time."""

import threading
import time
import tracemalloc

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from embedsync import service, size, text
from embedsync.embedders import get_embedder
from embedsync.models import Ledger
from embedsync.queue import Queue
from embedsync.signals import embedding_failed, embeddings_updated
from embedsync.splitter import Splitter
from embedsync.worker import Worker
from tests.books import KEY, BookEmbedding, execute, make_due
from tests.library.models import Book, Hall, Parcel, Seat
from tests.long_texts import KEY as ARTICLES
from tests.long_texts import stored, write
from tests.owed import PARCEL_KEY
from tests.sync import assert_in_step
from tests.workers import until, work

pytestmark = pytest.mark.django_db(transaction=True)


class Gate:
    """Holds up the calls of an embedder until told to go on, and knows how many there are."""

    def __init__(self, monkeypatch, alias="scripted"):
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.inside = self.most = self.calls = 0
        original = type(get_embedder(alias)).embed_documents

        def embed_documents(embedder, texts):
            with self.lock:
                self.inside += 1
                self.calls += 1
                self.most = max(self.most, self.inside)
            self.open.wait(30)
            with self.lock:
                self.inside -= 1
            return original(embedder, texts)

        monkeypatch.setattr(type(get_embedder(alias)), "embed_documents", embed_documents)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def leased(**which):
    return Ledger.objects.exclude(token=None).filter(**which).count()


def test_the_next_batch_is_claimed_while_one_is_being_embedded(drain, gate, running):
    drain()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(100)])
    worker = running(batch_size=10)
    until(lambda: leased() == 20)
    time.sleep(0.3)
    assert (leased(), gate.most) == (20, 1)
    gate.open.set()
    until(lambda: not Ledger.objects.exists() and BookEmbedding.objects.count() == 100)
    assert gate.most == 1
    assert worker.pipeline.claims == []
    assert_in_step(BookEmbedding)


def test_a_remote_embedder_is_called_several_times_at_once(drain, gate, running):
    drain()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(1000)])
    running(concurrency=4)
    until(lambda: gate.inside == 4)
    # Five parts of a claim, each of them one call; the next may be claimed by now.
    assert (gate.most, get_embedder("scripted").batch_size) == (4, 100)
    assert leased() in (500, 1000)
    gate.open.set()
    until(lambda: not Ledger.objects.exists() and BookEmbedding.objects.count() == 1000)
    assert (gate.most, gate.calls) == (4, 10)
    assert_in_step(BookEmbedding)


def test_a_slow_embedder_holds_up_no_other(drain, running, gate):
    drain()
    running()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(5000)])
    until(lambda: gate.inside == 1)
    Parcel.objects.create(label="of another embedder")
    until(lambda: Parcel.embedding.model.objects.exists())
    assert gate.inside == 1
    assert not BookEmbedding.objects.exists()


def test_a_call_that_takes_longer_than_a_worker_may_run_is_not_given_up(
    drain, settings, monkeypatch
):
    """Or the same rows would be embedded in vain once a minute."""
    settings.EMBEDSYNC_GRACE = 0.0
    drain()
    embedder = get_embedder("scripted")
    embed = embedder.embed_documents
    monkeypatch.setattr(
        embedder, "embed_documents", lambda texts: (time.sleep(0.5), embed(texts))[1]
    )
    Book.objects.create(title="A")
    Worker().run(max_seconds=0.2)
    assert_in_step(BookEmbedding)


def test_a_model_that_takes_long_to_load_holds_up_no_other(drain, monkeypatch, running):
    """It is loaded before texts are read where they are cut, because it counts their tokens."""
    drain()
    loaded = threading.Event()

    def slow(*given):
        loaded.wait(30)
        return Splitter(*given)

    monkeypatch.setattr(service, "Splitter", slow)
    article = write("one", "two")
    running()
    until(lambda: leased(sidecar=ARTICLES) == 1)
    Book.objects.create(title="of another embedder")
    until(lambda: BookEmbedding.objects.exists())
    assert stored(article) == {}
    loaded.set()
    until(lambda: stored(article) == {0: "one", 1: "two"})


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyError("tokenizer"), "is not served"), (ConnectionError("away"), "for its provider")],
    ids=["broken", "away"],
)
def test_a_model_that_cannot_be_loaded_blames_no_row(
    drain, monkeypatch, caplog, settings, error, said, concurrency
):
    """It is tried again: as a provider is, or later, which is said once."""
    settings.EMBEDSYNC_PROBE_INTERVAL = 0.05
    monkeypatch.setattr("embedsync.worker.BROKEN_SECONDS", 0.05)
    articles, tries = [write("one", "two") for _ in range(3)], []

    def fails(*given):
        tries.append(given)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(service, "Splitter", fails)
        worker = Worker(concurrency=concurrency)
        worker.start()
        until(lambda: (worker.round(), len(tries) >= 4)[1])
        until(lambda: (worker.round(), not worker.pipeline.busy)[1])
    assert caplog.text.count(said) == (1 if said == "is not served" else len(tries))
    assert "is served again" not in caplog.text
    owed = Ledger.objects.filter(sidecar=ARTICLES)
    assert set(owed.values_list("attempts", "token")) <= {(0, None)}
    until(lambda: (worker.round(), all(stored(article) for article in articles))[1])
    until(lambda: (worker.round(), not Ledger.objects.exists())[1])
    assert not worker.breakers["worded"].failures
    worker.pipeline.finish(lambda: False)


def test_a_worker_that_is_stopped_does_not_wait_for_a_model(drain, monkeypatch, running):
    drain()
    loading, loaded = threading.Event(), threading.Event()

    def slow(*given):
        loading.set()
        loaded.wait(30)
        return Splitter(*given)

    monkeypatch.setattr(service, "Splitter", slow)
    write("one", "two")
    worker = running()
    loading.wait(30)
    worker.stop()
    until(lambda: Ledger.objects.filter(sidecar=ARTICLES, token=None, attempts=0).exists())
    assert not loaded.is_set()
    loaded.set()


def test_what_is_tried_again_is_in_hand_alone(drain, gate, running):
    """And counted when its turn comes, so that a death blames one."""
    drain()
    Book.objects.bulk_create([Book(id=n, title=f"Book {n}") for n in range(1, 9)])
    Worker().queue.fold([KEY], 8)
    Ledger.objects.update(token=None, run_at="2000-01-01T00:00Z")
    running(concurrency=4)
    until(lambda: gate.inside == 1)
    until(lambda: leased() == 8)
    attempts = sorted(Ledger.objects.values_list("attempts", flat=True))
    gate.open.set()
    assert attempts == [1] * 7 + [2]
    until(lambda: BookEmbedding.objects.count() == 8)
    assert gate.most == 1


class TestBytes:
    @pytest.fixture
    def sizes(self, monkeypatch):
        """Bytes of all the texts of each read."""
        found = []
        original = text.read

        def read(*arguments, **more):
            rows = original(*arguments, **more)
            found.append(sum(len(each.encode()) for each in rows.texts.values()))
            return rows

        monkeypatch.setattr("embedsync.pipeline.read", read)
        return found

    def test_long_texts_are_read_a_few_at_a_time(self, drain, settings, sizes):
        settings.EMBEDSYNC_BATCH_BYTES = 200_000  # for the batch in hand and the next
        drain()
        sizes.clear()
        Book.objects.bulk_create([Book(title=str(n), body="ä" * 15_000) for n in range(20)])
        Book.objects.create(title="by itself", body="w" * 300_000)
        Book.objects.bulk_create([Book(title=f"short {n}") for n in range(50)])
        drain()
        assert_in_step(BookEmbedding)
        assert sorted(sizes, reverse=True)[0] > 300_000
        assert all(size <= 101_000 for size in sorted(sizes, reverse=True)[1:])
        # Three a time, and the short ones with others.
        assert len(sizes) <= 10

    @pytest.mark.parametrize(("limit", "is_flat"), [(16_000_000, True), (10**9, False)])
    def test_memory_stays_flat(self, drain, settings, limit, is_flat):
        """Sixty texts of three megabytes. The second time shows that this can fail."""
        settings.EMBEDSYNC_BATCH_BYTES = limit
        drain()
        execute(
            "INSERT INTO library_book (title, body, year, published)"
            " SELECT n::text, repeat('x', 3000000), 2000, true FROM generate_series(1, 60) AS n"
        )
        tracemalloc.start()
        try:
            drain()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert BookEmbedding.objects.count() == 60
        assert (peak < 120_000_000) == is_flat, peak

    def test_sizes_are_the_servers_own(self, drain):
        Book.objects.create(id=1, title="a", body="w" * 5_000_000)
        Book.objects.create(id=2, title="b", body="w")
        with CaptureQueriesContext(connection) as queries:
            assert size.within(BookEmbedding, ["1", "2"], "default", 1000) == ["1"]
            assert size.within(BookEmbedding, ["2", "1"], "default", 1000) == ["2"]
            assert size.within(BookEmbedding, ["2", "1"], "default", 10**7) == ["2", "1"]
            assert size.within(BookEmbedding, ["3"], "default", 10) == ["3"]
        asked = [query["sql"] for query in queries if "octet_length" in query["sql"]]
        # All that is stored apart is less than ten million: no row was measured.
        assert len(asked) == 2
        assert not any("embedsync_key" in sql and '"body",' in sql for sql in asked)


class TestSignals:
    @pytest.fixture
    def heard(self):
        heard = []

        def hear(signal=None, **arguments):
            name = "updated" if signal is embeddings_updated else "failed"
            heard.append((name, connection.in_atomic_block, arguments))

        for signal in (embeddings_updated, embedding_failed):
            signal.connect(hear)
        yield heard
        for signal in (embeddings_updated, embedding_failed):
            signal.disconnect(hear)

    def test_what_became_of_rows_is_told_after_the_transaction(self, drain, heard, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        drain()
        good = [Book.objects.create(title=f"good {n}") for n in range(2)]
        bad = Book.objects.create(title="FAIL")
        Book.objects.create(title="not published", published=False)
        drain()
        updated, failed = (
            [arguments for name, _, arguments in heard if name == which]
            for which in ("updated", "failed")
        )
        assert {in_transaction for _, in_transaction, _ in heard} == {False}
        assert [found["sender"] for found in updated] == [Book] * len(updated)
        assert sorted(pk for found in updated for pk in found["pks"]) == [book.pk for book in good]
        assert {found["sidecar"] for found in updated} == {BookEmbedding}
        assert failed == [
            {
                "sender": Book,
                "sidecar": BookEmbedding,
                "using": "default",
                "pk": bad.pk,
                "error": "RuntimeError: the provider is unwell",
                "attempts": 1,
                "parked": True,
            }
        ]
        heard.clear()
        Book.objects.filter(pk=good[0].pk).update(title="good 0", body="")  # nothing new
        drain()
        assert heard == []

    def test_a_row_that_kills_its_workers_is_told_of(self, drain, heard, settings, caplog):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        drain()
        killer = Book.objects.create(title="a worker dies of it")
        Worker().queue.fold([KEY], 10)
        make_due()
        drain()
        [(name, _, arguments)] = heard
        assert (name, arguments["pk"], arguments["parked"]) == ("failed", killer.pk, True)
        assert arguments["error"] == Ledger.objects.get().last_error
        assert f"{killer.pk}: parked, The worker died" in caplog.text

    def test_keys_are_told_as_python_has_them(self, drain, heard):
        hall = Hall.objects.create(name="Great")
        Seat.objects.create(hall=hall, number="A 7", view="of the stage")
        drain()
        [(_, _, arguments)] = heard
        assert arguments["pks"] == [(hall.pk, "A 7")]

    def test_a_receiver_that_raises_harms_nothing(self, drain, caplog):
        def fail(**arguments):
            raise RuntimeError("mine")

        embeddings_updated.connect(fail, sender=Book)
        try:
            Book.objects.create(title="A")
            drain()
        finally:
            embeddings_updated.disconnect(fail, sender=Book)
        assert_in_step(BookEmbedding)
        assert "failed: RuntimeError: mine" in caplog.text


def test_events_of_one_row_are_worked_off_together(drain, monkeypatch):
    drain()
    Book.objects.create(id=1, title="0")
    drain()
    for n in range(1, 2001):
        Book.objects.filter(id=1).update(title=str(n))
    worker, folds = Worker(), []
    original = worker.queue.fold

    def fold(*arguments):
        picked, claims = original(*arguments)
        folds.append(picked)
        return picked, claims

    monkeypatch.setattr(worker.queue, "fold", fold)
    worker.run(drain=True)
    assert_in_step(BookEmbedding)
    assert sum(folds) == 2000
    assert max(folds) > 1000
    # Others of which there is one event each are not claimed by the thousand for ever.
    Book.objects.bulk_create([Book(title=str(n)) for n in range(3000)])
    folds.clear()
    worker = Worker()
    monkeypatch.setattr(worker.queue, "fold", fold)
    drain()
    assert_in_step(BookEmbedding)


def test_records_say_what_they_are_about(drain, caplog, settings):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    drain()
    caplog.set_level("DEBUG", "embedsync")
    caplog.clear()
    Book.objects.create(title="good secret")
    bad = Book.objects.create(title="FAIL secret")
    drain()
    records = [record for record in caplog.records if getattr(record, "sidecar", "") == KEY]
    [settled] = [record for record in records if hasattr(record, "embedded")]
    assert (settled.rows, settled.embedded, settled.failed) == (2, 1, 1)
    assert 0 <= settled.seconds < 30
    [failed] = [record for record in records if hasattr(record, "source_pk")]
    assert (failed.source_pk, failed.attempts) == (str(bad.pk), 1)
    assert "secret" not in caplog.text


@pytest.fixture
def retries(drain):
    """Twenty books and a parcel that a dead worker has left behind: each is tried alone."""
    drain()
    Book.objects.bulk_create([Book(title=f"Book {n}") for n in range(20)])
    Parcel.objects.create(label="of another embedder")
    dead = Queue("default", "dead")
    while dead.fold([KEY, PARCEL_KEY], 100)[0]:
        pass
    make_due()


def test_retries_of_one_embedder_let_those_of_another_have_their_turn(retries, monkeypatch):
    """They go one at a time, so that a death is blamed on the row in hand."""
    asked = []
    for alias in ("scripted", "hashing"):
        embedder = get_embedder(alias)

        def embed(texts, alias=alias, embed=embedder.embed_documents):
            asked.append((alias, len(texts)))
            return embed(texts)

        monkeypatch.setattr(embedder, "embed_documents", embed)
    worker = Worker()
    worker.start()
    work(worker)
    assert asked.count(("scripted", 1)) == 20
    assert asked.index(("hashing", 1)) <= 2


def test_a_retry_that_hangs_does_not_hold_up_those_of_another_embedder(
    retries, running, gate, monkeypatch
):
    monkeypatch.setattr("embedsync.lane.SLOW_SECONDS", 0.3)
    running()
    until(lambda: Parcel.embedding.model.objects.exists())
    assert gate.inside == 1
    assert not BookEmbedding.objects.exists()
