"""What embedding costs: a text is paid for once, it is counted, and a budget holds for all."""

import json
import threading
import time
from io import StringIO

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connection
from prometheus_client import CollectorRegistry, generate_latest

from embedsync import metrics
from embedsync.budget import Budget
from embedsync.declaration import key_of
from embedsync.embedders import get_embedder
from embedsync.models import EmbedderMinute, Ledger
from embedsync.worker import Worker
from tests.books import KEY, BookEmbedding, execute
from tests.embedders import ScriptedEmbedder
from tests.library.models import Book, Parcel
from tests.long_texts import ArticleEmbedding
from tests.provider import running_provider
from tests.sync import assert_in_step, stored_vectors
from tests.workers import until, work

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def provider():
    with running_provider() as provider:
        yield provider


@pytest.fixture
def asked(transactional_db, settings, provider, drain):
    """Let books be embedded by a provider, under limits; the texts that it was asked for."""

    def limited(**limits):
        entry = {"BACKEND": "tests.provider.HttpEmbedder", "DIMENSIONS": 64, **limits}
        settings.EMBEDSYNC_EMBEDDERS = {
            **settings.EMBEDSYNC_EMBEDDERS,
            "scripted": {**entry, "OPTIONS": {"url": provider.url}},
        }
        drain()
        provider.calls.clear()
        return lambda: [text for call in provider.calls for text in call]

    return limited


def books(number, title="Book {}"):
    return Book.objects.bulk_create([Book(title=title.format(n)) for n in range(number)])


def started():
    worker = Worker()
    worker.start()
    return worker


class TestTheSameText:
    def test_is_embedded_once(self, asked, drain):
        texts = asked()
        books(5)
        books(20, title="Untitled")
        drain()
        assert sorted(texts()) == [*(f"Book {n}. " for n in range(5)), "Untitled. "]
        assert_in_step(BookEmbedding)

    def test_is_remembered_for_a_while(self, asked, monkeypatch):
        texts = asked()
        worker = started()
        for _ in range(3):
            books(2, title="Untitled")
            work(worker)
        assert texts() == ["Untitled. "]
        monkeypatch.setattr("embedsync.recent.MOST", 2)
        books(3)
        work(worker)
        books(1, title="Untitled")
        work(worker)
        assert texts().count("Untitled. ") == 2
        assert_in_step(BookEmbedding)

    def test_that_is_long_is_not_remembered(self, asked):
        texts = asked()
        worker = started()
        for _ in range(2):
            Book.objects.create(title="Long", body="long " * 300)
            work(worker)
        assert len(texts()) == 2

    def test_that_is_bad_parks_all_who_have_it_and_no_other(self, drain, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        drain()
        books(3, title="FAIL")
        books(5)
        drain()
        assert Ledger.objects.filter(run_at=None, attempts=1).count() == 3
        assert stored_vectors(BookEmbedding).keys() == {
            book.pk for book in Book.objects.exclude(title="FAIL")
        }

    def test_that_the_model_does_not_read_whole_is_counted_for_each(self, drain, settings):
        settings.EMBEDSYNC_EMBEDDERS = {
            **settings.EMBEDSYNC_EMBEDDERS,
            "scripted": settings.EMBEDSYNC_EMBEDDERS["worded"],
        }
        drain()
        long = " ".join(["word"] * 20)
        for _ in range(2):
            Book.objects.bulk_create([Book(title="T", body=long), Book(title="T", body=long)])
            drain()
        assert BookEmbedding.objects.filter(cut=True).count() == 4

    def test_is_embedded_where_its_tokens_cannot_be_counted(self, drain, monkeypatch, caplog):
        drain()
        monkeypatch.setattr(ScriptedEmbedder, "max_tokens", "8191", raising=False)
        books(3)
        drain()
        assert_in_step(BookEmbedding)
        assert BookEmbedding.objects.count() == 3
        assert "library.BookEmbedding: its tokens cannot be counted" in caplog.text

    def test_of_a_row_whose_other_passage_is_bad_is_embedded_for_others(
        self, transactional_db, monkeypatch
    ):
        service = started().services[key_of(ArticleEmbedding)]
        monkeypatch.setattr(service.embedder, "batch_size", 1)
        texts = {("1", 0): "FAIL", ("1", 1): "own", ("1", 2): "shared", ("2", 0): "shared"}
        found = service.embed(texts, lambda: False)
        assert found.failed.keys() == {"1"}
        assert ("2", 0) in found.vectors
        assert ("1", 1) not in found.vectors


class TestUsage:
    def test_is_told_of(self, asked, drain):
        asked()
        books(130)
        drain()
        [used] = [one for one in status()["embedders"] if one["embedder"] == "scripted"]
        assert used["calls"] == 3
        characters = sum(len(f"Book {n}. ") for n in range(130))
        assert characters / 4 <= used["tokens"] <= characters / 4 + 3
        assert used["rows_per_minute"] is None
        output = StringIO()
        call_command("embed_status", "library.Book", stdout=output)
        assert f"scripted  calls: 3, tokens: {used['tokens']}\n" in output.getvalue()

    def test_of_two_days_ago_is_not(self, asked, drain):
        asked()
        books(3)
        drain()
        EmbedderMinute.objects.update(minute="2020-01-01T00:00Z")
        [used] = [one for one in status()["embedders"] if one["embedder"] == "scripted"]
        assert used["calls"] == used["tokens"] == 0

    def test_is_counted_by_the_embedder_where_it_can(self, drain, monkeypatch):
        drain()
        embedder = get_embedder("scripted")
        embed = embedder.embed_documents

        def embed_documents(texts):
            embedder.usage.add(tokens=1000)
            return embed(texts)

        monkeypatch.setattr(embedder, "embed_documents", embed_documents)
        monkeypatch.setattr(embedder, "counts_tokens", True)
        EmbedderMinute.objects.all().delete()
        books(3)
        drain()
        assert EmbedderMinute.objects.get(embedder="scripted").tokens == 1000

    def test_is_a_metric_of_the_process(self, drain):
        registry = CollectorRegistry()
        metrics.WorkerCounters(registry)
        before = tokens_told(registry)
        books(1, title="x" * 38)
        drain()
        assert tokens_told(registry) == before + 10


def tokens_told(registry):
    lines = generate_latest(registry).decode().splitlines()
    found = [
        line for line in lines if line.startswith('embedsync_tokens_total{embedder="scripted"')
    ]
    return sum(float(line.split()[-1]) for line in found)


def status():
    output = StringIO()
    call_command("embed_status", "--json", stdout=output)
    return json.loads(output.getvalue())


def minute_passed(*workers):
    """As if what has been spent had been a minute ago."""
    execute("UPDATE embedsync_embedder_minute SET minute = minute - interval '1 minute'")
    for worker in workers:
        for budget in worker.budgets.values():
            budget._next_minute = 0.0


@pytest.fixture
def early(transactional_db):
    """Begin where a minute has some seconds left, so that the test does not see two."""

    def seconds():
        with connection.cursor() as cursor:
            cursor.execute("SELECT extract(second FROM clock_timestamp())")
            return cursor.fetchone()[0]

    until(lambda: seconds() < 40)


@pytest.mark.usefixtures("early")
class TestABudget:
    def test_of_rows_holds_for_all_workers(self, asked):
        texts = asked(ROWS_PER_MINUTE=10)
        one, other = started(), started()
        books(25)
        work(one)
        work(other)
        assert len(texts()) == 10
        waiting = Ledger.objects.filter(sidecar=KEY)
        assert waiting.count() == 15
        # Nobody is to blame, and nobody holds them.
        assert set(waiting.values_list("attempts", "token", "last_error")) == {(0, None, "")}
        minute_passed(one, other)
        work(other)
        work(one)
        assert len(texts()) == 20
        minute_passed(one, other)
        work(one)
        assert_in_step(BookEmbedding)

    def test_is_kept_by_workers_at_the_same_time(self, asked, monkeypatch):
        texts = asked(ROWS_PER_MINUTE=7)
        books(40)
        is_beyond = Budget._is_beyond

        def hesitating(self, rows, tokens):
            time.sleep(0.1)  # between what has been read and what is written
            return is_beyond(self, rows, tokens)

        monkeypatch.setattr(Budget, "_is_beyond", hesitating)

        def run():
            try:
                worker = Worker(batch_size=3)
                worker.run(max_seconds=3)
            finally:
                connection.close()

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(texts()) == 7
        assert EmbedderMinute.objects.get(embedder="scripted").granted_rows == 7

    def test_of_tokens_takes_what_fits(self, asked):
        texts = asked(TOKENS_PER_MINUTE=100)
        worker = started()
        books(10, title="x" * 118)  # 30 tokens each
        Book.objects.update(title="different", body="")
        for book in Book.objects.all():
            Book.objects.filter(pk=book.pk).update(title=f"{book.pk:0117}")
        work(worker)
        assert len(texts()) == 3

    def test_lets_a_minutes_first_row_pass_however_long_it_is(self, asked):
        texts = asked(TOKENS_PER_MINUTE=10)
        worker = started()
        Book.objects.create(title="long", body="x" * 4000)
        Book.objects.create(title="longer", body="y" * 4000)
        work(worker)
        assert len(texts()) == 1
        minute_passed(worker)
        work(worker)
        assert_in_step(BookEmbedding)

    def test_is_not_spent_on_what_has_not_changed(self, asked):
        texts = asked(ROWS_PER_MINUTE=3)
        worker = started()
        books(3)
        work(worker)
        minute_passed(worker)
        Book.objects.update(title="Book 9")
        Book.objects.all().delete()
        books(3)
        work(worker)
        execute(
            "INSERT INTO embedsync_inbox (sidecar, kind, source_pk)"
            f" SELECT '{KEY}', 'row', id::text FROM library_book"
        )
        work(worker)
        assert not Ledger.objects.exists()
        assert sum(EmbedderMinute.objects.values_list("granted_rows", flat=True)) == 3
        assert len(texts()) == 3

    def test_is_not_spent_on_the_same_text_twice(self, asked):
        texts = asked(ROWS_PER_MINUTE=2)
        worker = started()
        books(3, title="One")
        books(3, title="Other")
        books(3, title="Third")
        work(worker)
        assert len(texts()) == 2
        assert BookEmbedding.objects.count() == 6
        minute_passed(worker)
        work(worker)
        assert_in_step(BookEmbedding)

    def test_keeps_no_deleted_and_no_hidden_row_waiting(self, asked):
        asked(ROWS_PER_MINUTE=2)
        worker = started()
        gone, hidden = books(2)
        work(worker)
        minute_passed(worker)
        Book.objects.filter(pk=gone.pk).delete()
        Book.objects.filter(pk=hidden.pk).update(published=False)
        books(4, title="Later {}")
        work(worker)
        # All were in one part, of which two rows had to wait.
        titles = BookEmbedding.objects.values_list("source__title", flat=True)
        assert len(titles) == 2
        assert all(title.startswith("Later") for title in titles)
        assert Ledger.objects.count() == Ledger.objects.filter(token=None).count() == 2

    def test_is_not_spent_on_a_provider_in_trouble(self, asked, provider, settings):
        settings.EMBEDSYNC_BACKOFF = 0.01
        asked(ROWS_PER_MINUTE=20)
        provider.fails(500)
        worker = started()
        books(9)
        breaker = worker.breakers["scripted"]
        until(lambda: worker.round() in (True, False) and breaker.failures == 4)
        # Nine before it was known, and then a row for each call.
        assert EmbedderMinute.objects.get(embedder="scripted").granted_rows == 9 + 3

    def test_lets_what_is_small_pass_what_has_no_room(self, asked):
        texts = asked(TOKENS_PER_MINUTE=100)
        worker = started()
        for length in (240, 240, 40):
            Book.objects.create(title="x", body=f"{length + Book.objects.count():0{length}}")
        work(worker)
        assert sorted(map(len, texts())) == [43, 243]

    def test_holds_up_no_other_embedder(self, asked):
        asked(ROWS_PER_MINUTE=1)
        worker = started()
        books(5)
        Parcel.objects.bulk_create([Parcel(label=f"p{n}") for n in range(5)])
        work(worker)
        assert Parcel.embedding.model.objects.count() == 5
        assert BookEmbedding.objects.count() == 1

    def test_makes_a_drain_wait_for_the_next_minute(self, asked, monkeypatch):
        texts = asked(ROWS_PER_MINUTE=4)
        worker = started()
        waits = []

        def wait(seconds):
            waits.append(len(texts()))
            minute_passed(worker)

        monkeypatch.setattr(worker, "_wait", wait)
        books(10)
        worker.run(drain=True)
        assert waits == [4, 8]
        assert_in_step(BookEmbedding)

    def test_ends_with_its_time(self, asked):
        texts = asked(ROWS_PER_MINUTE=4)
        books(10)
        Worker().run(drain=True, max_seconds=1)
        assert len(texts()) == 4

    def test_is_told_of(self, asked, drain):
        asked(ROWS_PER_MINUTE=10, TOKENS_PER_MINUTE=1000)
        books(4)
        drain()
        [used] = [one for one in status()["embedders"] if one["embedder"] == "scripted"]
        assert (used["rows_per_minute"], used["granted_rows"]) == (10, 4)
        output = StringIO()
        call_command("embed_status", "library.Book", stdout=output)
        assert "; 4 of 10 rows of this minute; 8 of 1000 tokens of this minute" in output.getvalue()


@pytest.mark.parametrize("limit", [0, -1, 1.5, "many", True])
def test_a_limit_that_is_none_is_a_mistake(settings, limit):
    settings.EMBEDSYNC_EMBEDDERS = {
        **settings.EMBEDSYNC_EMBEDDERS,
        "scripted": {**settings.EMBEDSYNC_EMBEDDERS["scripted"], "TOKENS_PER_MINUTE": limit},
    }
    found = [error for error in run_checks() if "TOKENS_PER_MINUTE" in error.hint + error.msg]
    assert found
    assert all(error.id.startswith("embedsync.E") for error in found)
