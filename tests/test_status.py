"""``embed_status``: what it tells of sidecars and their triggers, each state made for real."""

import io
import json

import pytest
from django.core.management import CommandError, call_command

from embedsync import status
from embedsync.models import SidecarState
from embedsync.queue import Queue
from tests.articles.models import Article
from tests.books import KEY, attach, execute, make_due, renamed
from tests.library.models import Book, Seat

pytestmark = pytest.mark.django_db


def run(*labels, **options):
    """What the command writes."""
    output = io.StringIO()
    call_command("embed_status", *labels, stdout=output, **options)
    return output.getvalue()


def fail(*labels, **options):
    """What the command writes before it fails, and why it does."""
    output = io.StringIO()
    with pytest.raises(CommandError) as error:
        call_command("embed_status", *labels, stdout=output, **options)
    assert error.value.returncode == 1
    return output.getvalue(), str(error.value)


def as_json(*labels, **options):
    return json.loads(run(*labels, json=True, **options))


def book():
    """What it tells of the books."""
    [found] = as_json("library.Book")["sidecars"]
    return found


def counts():
    found = book()
    return [found[name] for name in ("rows", "waiting", "leased", "parked")]


def claim():
    """Lease what is owed, as a worker does before it embeds."""
    return Queue("default", "a worker").fold([KEY], 10)


class TestQueue:
    @pytest.mark.django_db(transaction=True)
    def test_a_row_is_told_of_wherever_it_is(self, drain, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        drain()
        Book.objects.create(title="done")
        drain()
        assert counts() == [1, 0, 0, 0]
        Book.objects.create(title="FAIL")
        drain()
        assert counts() == [1, 0, 0, 1]
        Book.objects.create(title="in hand")
        assert counts() == [1, 1, 0, 1]
        claim()
        assert counts() == [1, 0, 1, 1]
        Book.objects.create(title="waits")
        assert counts() == [1, 1, 1, 1]
        make_due()  # the lease has run out
        assert counts() == [1, 2, 0, 1]

    def test_a_row_that_is_to_be_tried_later_waits(self):
        Book.objects.create(title="late")
        [lease] = claim()[1]
        Queue("default", "a worker").hand_back(lease, dict.fromkeys(lease.pks, 3600.0), "later")
        assert counts() == [0, 1, 0, 0]

    def test_the_oldest_wait_is_that_of_the_oldest_that_is_not_parked(self):
        assert book()["oldest_wait"] == 0
        ago = "statement_timestamp() - %s * interval '1 second'"
        for seconds, run_at in ((9000, "NULL"), (3600, "now()")):
            execute(
                "INSERT INTO embedsync_ledger (sidecar, source_pk, queued_at, run_at)"
                f" VALUES (%s, %s, {ago}, {run_at})",
                [KEY, str(seconds), seconds],
            )
        Book.objects.create(title="new")
        assert 3600 <= book()["oldest_wait"] < 4600

    def test_the_last_error_is_one_line_and_quotes_no_row(self):
        for pk, error in (
            ("1", "older"),
            ("2", "DataError: bad\nDETAIL: row (2, secret)"),
            ("3", ""),
        ):
            execute(
                "INSERT INTO embedsync_ledger (sidecar, source_pk, queued_at, last_error)"
                " VALUES (%s, %s, now() + %s::int * interval '1 second', %s)",
                [KEY, pk, pk, error],
            )
        assert book()["last_error"] == "DataError: bad"
        output = run()
        assert "\n    DataError: bad\n" in output
        assert "secret" not in output

    def test_of_very_many_rows_an_estimate_is_told(self, monkeypatch):
        monkeypatch.setattr(status, "COUNTED", 2)
        insert = (
            "INSERT INTO library_bookembedding (source_id, ordinal, digest, vector)"
            " SELECT n, 0, '', array_fill(1, ARRAY[64])::halfvec FROM generate_series(%s, %s) n"
        )
        execute(insert, [1, 5])
        execute("ANALYZE library_bookembedding")
        execute(insert, [6, 8])
        assert (book()["rows"], book()["rows_are_estimated"]) == (5, True)
        assert "~5" in run("library.Book")

    def test_an_estimate_is_of_rows_and_not_of_passages(self, monkeypatch):
        monkeypatch.setattr(status, "COUNTED", 2)
        Article.objects.bulk_create([Article(body="") for _ in range(3)])
        execute(
            "INSERT INTO articles_articleembedding (source_id, ordinal, digest, vector)"
            " SELECT id, ordinal, '', array_fill(1, ARRAY[64])::halfvec"
            " FROM articles_article, generate_series(0, 4) AS ordinal"
        )
        execute("ANALYZE articles_article, articles_articleembedding")
        [found] = as_json("articles.Article")["sidecars"]
        assert (found["rows"], found["rows_are_estimated"]) == (3, True)


class TestFill:
    def fill(self):
        found = book()["fill"]
        return found["state"], found["left"]

    def test_how_far_it_is(self):
        Book.objects.bulk_create([Book(id=n, title="A book") for n in range(1, 6)])
        SidecarState.objects.all().delete()
        assert self.fill() == ("not begun", 5)
        SidecarState.objects.create(key=KEY)
        assert self.fill() == ("not begun", 5)
        queue = Queue("default", "a worker")
        queue.fill(Book.embedding.model, 2)
        assert self.fill() == ("begun", 3)
        assert "begun, 3 to go\n" in run("library.Book")
        queue.fill(Book.embedding.model, 10)
        assert self.fill() == ("complete", None)

    def test_rows_to_go_are_counted_to_a_limit(self, monkeypatch):
        monkeypatch.setattr("embedsync.management.commands.embed_status.COUNTED", 2)
        monkeypatch.setattr(status, "COUNTED", 2)
        Book.objects.bulk_create([Book(title="A book") for _ in range(5)])
        SidecarState.objects.all().delete()
        assert "not begun, over 2 to go\n" in run("library.Book")

    def test_a_key_of_several_columns(self):
        execute("INSERT INTO library_hall (id, name) VALUES (1, 'great')")
        Seat.objects.bulk_create(
            [Seat(hall_id=1, number=number, view="all", free=True) for number in "abc"]
        )
        SidecarState.objects.all().delete()
        SidecarState.objects.create(key="library.seatembedding")
        Queue("default", "a worker").fill(Seat.embedding.model, 2)
        assert "begun, 1 to go\n" in run("library.Seat")

    @pytest.mark.django_db(transaction=True)
    def test_it_is_due_again_where_a_trigger_has_failed(self, drain):
        drain()
        assert self.fill() == ("complete", None)
        with renamed("embedsync_inbox"):
            Book.objects.create(title="missed")
        assert self.fill() == ("due", None)
        drain()
        assert self.fill() == ("complete", None)


class TestSchema:
    """What is changed behind Django's back is named, and the other sidecars are told of."""

    def error(self, *labels):
        errors = [found["schema_error"] for found in as_json(*labels)["sidecars"]]
        return ", ".join(filter(None, errors))

    def test_nothing_is_wrong(self):
        assert self.error() == ""

    @pytest.mark.parametrize(
        ("sql", "error"),
        [
            (
                "ALTER TABLE library_book RENAME COLUMN body TO prose",
                "schema error: column library_book.body is missing",
            ),
            (
                "ALTER TABLE library_book DROP title, DROP published",
                "schema error: column library_book.published is missing,"
                " column library_book.title is missing",
            ),
            ('ALTER TABLE "library tickets" DROP "the text"',
             "schema error: column library tickets.the text is missing"),
            ("DROP TABLE library_memo CASCADE", "orphaned: table library_memo is missing"),
            ("DROP TABLE library_bookembedding CASCADE",
             "schema error: table library_bookembedding is missing"),
            ("DROP TABLE press_author CASCADE", "schema error: table press_author is missing"),
            ("ALTER TABLE cinema_film_genres DROP genre_id",
             "schema error: column cinema_film_genres.genre_id is missing"),
            ("ALTER TABLE library_memoembedding DROP vector",
             "schema error: column library_memoembedding.vector is missing"),
            ("ALTER TABLE library_memoembedding DROP ordinal",
             "schema error: column library_memoembedding.ordinal is missing"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("filled", [True, False])
    def test_what_is_missing_is_named(self, sql, error, filled):
        if not filled:
            SidecarState.objects.all().delete()
        execute(sql)
        written, why = fail(json=True)
        wrong = [one for one in json.loads(written)["sidecars"] if one["schema_error"]]
        assert [one["schema_error"] for one in wrong] == [error]
        assert why == f"Not served: {wrong[0]['sidecar']}."
        output, _ = fail()
        assert f"\n    {error}\n" in output
        assert "library.novelembedding" in output
        with pytest.raises(CommandError, match="Sidecars with a schema error: 1"):
            run(triggers=True)

    def test_a_column_that_the_text_does_not_need_may_go(self):
        execute("ALTER TABLE library_book DROP year")
        assert self.error() == ""


class TestTriggers:
    INSERT = "library_bookembedding_sync_insert"

    def test_all_are_installed(self):
        output = run("library.Book", triggers=True)
        events = ("delete", "insert", "truncate", "update")
        names = [f"    installed  library_bookembedding_sync_{event}\n" for event in events]
        assert output == "library.bookembedding\n  library_book\n" + "".join(names)
        assert "cinema_filmembedding_sync_4_delete" in run(triggers=True)

    @pytest.mark.parametrize(
        ("sql", "state"),
        [
            (f"DROP TRIGGER {INSERT} ON library_book", "missing"),
            (f"ALTER TABLE library_book DISABLE TRIGGER {INSERT}", "disabled"),
            (f"ALTER TABLE library_book ENABLE REPLICA TRIGGER {INSERT}", "outdated"),
        ],
    )
    def test_each_state_has_its_word(self, sql, state):
        execute(sql)
        output, error = fail(triggers=True)
        assert f"    {state:<9}  {self.INSERT}\n" in output
        assert "Not installed: 1 of " in error
        [found] = [one for one in self.json() if one["state"] != "installed"]
        assert found == {
            "key": KEY, "table": "library_book", "name": self.INSERT, "state": state
        }  # fmt: skip

    def json(self):
        """The listing for programs, which is whole though the command fails."""
        return json.loads(fail(triggers=True, json=True)[0])["triggers"]

    def test_an_orphan_is_listed_unless_models_are_chosen(self):
        attach("lost", "library_hall", "library.gone")
        output, _ = fail(triggers=True)
        assert "library.gone\n  library_hall\n    orphan     lost\n" in output
        assert "lost" not in run("library.Book", triggers=True)

    def test_triggers_of_a_table_that_is_gone_are_missing(self):
        execute("DROP TABLE library_memo CASCADE")
        output, _ = fail("library.Memo", triggers=True)
        assert output.startswith(
            "library.memoembedding\n  orphaned: table library_memo is missing\n  library_memo\n"
        )
        assert output.count("    missing    ") == 4


class TestCommand:
    def test_the_table_names_every_sidecar(self):
        lines = run().splitlines()
        assert lines[0].split() == [
            "sidecar", "rows", "cut", "waiting", "leased", "parked", "oldest", "s", "rows/s", "fill"
        ]  # fmt: skip
        assert any(line.startswith("library.bookembedding ") for line in lines)

    def test_sources_and_sidecars_can_be_chosen(self):
        told = as_json("library.BookEmbedding", "library.memo", "library.Book")
        assert told["database"] == "default"
        assert [found["sidecar"] for found in told["sidecars"]] == [KEY, "library.memoembedding"]

    @pytest.mark.parametrize("triggers", [True, False])
    @pytest.mark.parametrize(
        ("label", "error"),
        [
            ("library", "write app.Model"),
            ("library.Nothing", "There is no model 'library.Nothing'"),
            ("library.Hall", "library.Hall has no embedding in database 'default'"),
        ],
    )
    def test_other_models_are_refused(self, label, error, triggers):
        with pytest.raises(CommandError, match=error):
            run(label, triggers=triggers)

    def test_a_database_that_is_not_there(self):
        with pytest.raises(CommandError, match="no database 'nowhere'"):
            run(database="nowhere")

    @pytest.mark.parametrize("triggers", [True, False])
    def test_a_database_without_our_tables(self, triggers):
        execute("DROP TABLE embedsync_inbox CASCADE")
        with pytest.raises(CommandError, match="no tables of embedsync: run migrate"):
            run(triggers=triggers)

    def test_no_model_is_loaded(self, settings):
        backend = "tests.nowhere.Embedder"
        settings.EMBEDSYNC_EMBEDDERS = {
            alias: {**entry, "BACKEND": backend}
            for alias, entry in settings.EMBEDSYNC_EMBEDDERS.items()
        }
        assert "library.bookembedding" in run()
        assert "library.bookembedding" in run(triggers=True)


class TestRoles:
    @pytest.fixture
    def role(self):
        """Be a role with no rights but those given, in a transaction that may not write."""

        def role(*rights):
            execute("CREATE ROLE embedsync_reader")
            for right in rights:
                execute(f"GRANT {right} TO embedsync_reader")
            execute("SET LOCAL ROLE embedsync_reader")
            execute("SET LOCAL transaction_read_only = on")

        return role

    def test_one_that_may_only_read_is_told_all(self, role):
        Book.objects.create(title="waits")
        SidecarState.objects.all().delete()
        role("SELECT ON ALL TABLES IN SCHEMA public")
        assert counts() == [0, 1, 0, 0]
        assert book()["fill"] == {"state": "not begun", "left": 1}
        assert " installed " in run(triggers=True)

    def test_one_that_may_not_read_the_models_is_told_the_rest(self, role):
        Book.objects.create(title="waits")
        SidecarState.objects.all().delete()
        tables = ("inbox", "ledger", "sidecar", "trigger", "worker", "minute", "embedder_minute")
        role(f"SELECT ON {', '.join(f'embedsync_{table}' for table in tables)}")
        assert counts() == [None, 1, 0, 0]
        assert book()["fill"] == {"state": "not begun", "left": None}
        assert book()["schema_error"] == ""
        assert run("library.Book").splitlines()[1].split()[1] == "?"
        assert " installed " in run(triggers=True)

    def test_one_that_may_read_nothing_is_told_so(self, role):
        role()
        with pytest.raises(CommandError, match="'default': permission denied for") as error:
            run()
        assert "\n" not in str(error.value)
