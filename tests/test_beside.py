"""Tables that carry triggers and rules of their own: what is stored is what is embedded."""

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from embedsync.capture import SyncTrigger
from embedsync.models import Inbox
from tests.books import BookEmbedding, execute
from tests.library.models import Book, Letter
from tests.sync import assert_in_step

pytestmark = pytest.mark.django_db(transaction=True)

LetterEmbedding = Letter.embedding.model


@pytest.fixture(params=["statement", "row"])
def _either_level(request, transactional_db):
    """Our triggers of the books, of one kind and of the other."""
    [given] = [c for c in BookEmbedding._meta.constraints if isinstance(c, SyncTrigger)]
    asked = SyncTrigger(key=given.key, fields=given.fields, name=given.name, level=request.param)
    exchange(given, asked)
    yield
    exchange(asked, given)


either_level = pytest.mark.usefixtures("_either_level")


def exchange(old, new):
    if old != new:
        with connection.schema_editor() as editor:
            editor.remove_constraint(BookEmbedding, old)
            editor.add_constraint(BookEmbedding, new)


@pytest.fixture(params=["aaa", "zzz"])
def name(request):
    """PostgreSQL runs triggers of one kind in the order of their names; ours is "library_…"."""
    return request.param


@pytest.fixture
def theirs(transactional_db):
    """Make a trigger of the application's."""
    made = []

    def make(name, fires, body, level="ROW"):
        function = f"theirs_{len(made)}"
        made.append(function)
        execute(
            f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql"
            f" AS $f$ BEGIN {body} END $f$"
        )
        kind = "CONSTRAINT TRIGGER" if "DEFERRED" in fires else "TRIGGER"
        execute(f"CREATE {kind} {name} {fires} FOR EACH {level} EXECUTE FUNCTION {function}()")

    yield make
    for function in made:
        execute(f"DROP FUNCTION {function} CASCADE")


@pytest.fixture
def defined(transactional_db):
    """Run DDL, and other DDL that undoes it at the end."""
    undo = []

    def make(ddl, undone):
        execute(ddl)
        undo.insert(0, undone)

    yield make
    for ddl in undo:
        execute(ddl)


@pytest.fixture
def books(drain):
    Book.objects.bulk_create([Book(pk=pk, title=f"Book {pk}") for pk in (1, 2, 3)])
    drain()


def events(key="library.bookembedding"):
    """The keys that the inbox has for a sidecar, in order. They stay there."""
    found = Inbox.objects.filter(sidecar=key, kind="row").order_by("seq")
    return [event.source_pk for event in found]


@pytest.fixture
def in_step(drain):
    """Drain, and compare all vectors with the rows."""

    def check():
        drain()
        assert_in_step(BookEmbedding, LetterEmbedding)

    return check


def titles():
    return dict(Book.objects.values_list("pk", "title"))


def copy(*rows):
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY library_book (id, title, body, year, published) FROM STDIN") as into,
    ):
        for row in rows:
            into.write_row((*row, "", 2000, True))


@either_level
def test_text_that_a_trigger_rewrites_is_embedded_as_it_is_stored(books, theirs, name, in_step):
    theirs(
        name,
        "BEFORE INSERT OR UPDATE ON library_book",
        "NEW.title := upper(NEW.title); RETURN NEW;",
    )
    Book.objects.create(pk=4, title="four")
    Book.objects.filter(pk=1).update(title="one")
    copy((5, "five"))
    execute(
        "INSERT INTO library_book VALUES (2, 'two', '', 1, true)"
        " ON CONFLICT (id) DO UPDATE SET title = excluded.title"
    )
    assert events() == ["4", "1", "5", "2"]
    in_step()
    assert titles() == {1: "ONE", 2: "TWO", 3: "Book 3", 4: "FOUR", 5: "FIVE"}


@either_level
def test_a_trigger_that_rewrites_the_text_when_another_column_changes(books, theirs, name, in_step):
    theirs(name, "BEFORE UPDATE ON library_book", "NEW.title := 'From ' || NEW.year; RETURN NEW;")
    Book.objects.filter(pk__lt=3).update(year=1999)
    assert sorted(events()) == ["1", "2"]
    in_step()


@either_level
def test_a_trigger_that_keeps_the_text_as_it_was_makes_no_event(books, theirs, name, in_step):
    theirs(name, "BEFORE UPDATE ON library_book", "NEW.title := OLD.title; RETURN NEW;")
    Book.objects.update(title="Refused")
    assert events() == []
    in_step()


@either_level
def test_a_trigger_that_changes_the_key(books, theirs, name, in_step):
    theirs(name, "BEFORE INSERT OR UPDATE ON library_book", "NEW.id := NEW.id + 10; RETURN NEW;")
    execute("INSERT INTO library_book VALUES (5, 'five', '', 1, true)")
    execute("UPDATE library_book SET title = 'one' WHERE id = 1")
    assert events()[0] == "15"
    assert sorted(events()) == ["1", "11", "15"]
    in_step()


@either_level
def test_rows_that_a_trigger_suppresses_make_no_event(books, theirs, name, in_step):
    theirs(
        name,
        "BEFORE INSERT OR UPDATE OR DELETE ON library_book",
        "IF coalesce(NEW.id, OLD.id) % 2 = 0 THEN RETURN NULL; END IF; RETURN coalesce(NEW, OLD);",
    )
    execute("INSERT INTO library_book SELECT n, 'new', '', 1, true FROM generate_series(4, 7) n")
    execute("UPDATE library_book SET title = 'changed' WHERE id < 4")
    execute("DELETE FROM library_book WHERE id < 3")
    found = events()
    assert (sorted(found[:2]), sorted(found[2:4]), found[4:]) == (["5", "7"], ["1", "3"], ["1"])
    in_step()
    assert titles().keys() == {2, 3, 5, 7}


@either_level
def test_a_delete_that_a_trigger_makes_an_update(books, theirs, name, in_step):
    theirs(
        name,
        "BEFORE DELETE ON library_book",
        "UPDATE library_book SET published = false WHERE id = OLD.id; RETURN NULL;",
    )
    Book.objects.filter(pk=2).delete()
    assert events() == ["2"]
    in_step()
    assert Book.objects.count() == 3
    assert not BookEmbedding.objects.filter(source_id=2).exists()


@pytest.mark.parametrize("for_each", ["ROW", "STATEMENT"])
def test_a_trigger_that_updates_its_table_again_and_again(books, theirs, name, for_each, in_step):
    theirs(
        name,
        "AFTER INSERT OR UPDATE ON library_book",
        "IF EXISTS (SELECT FROM library_book WHERE id > 3 AND length(body) < 3) THEN"
        " UPDATE library_book SET body = body || '.' WHERE id > 3; END IF; RETURN NULL;",
        for_each,
    )
    Book.objects.create(pk=4, title="four")
    assert events() == ["4"] * 4
    in_step()
    assert Book.objects.get(pk=4).body == "..."


@pytest.mark.parametrize("for_each", ["ROW", "STATEMENT"])
def test_a_trigger_that_undoes_what_was_written(books, theirs, name, for_each, in_step):
    theirs(
        name,
        "AFTER INSERT ON library_book",
        "DELETE FROM library_book WHERE title = 'Spam'; RETURN NULL;",
        for_each,
    )
    Book.objects.create(pk=4, title="Spam")
    assert events() == ["4", "4"]
    in_step()
    assert titles().keys() == {1, 2, 3}


def test_a_trigger_that_copies_into_another_source(books, theirs, name, in_step):
    theirs(
        name,
        "AFTER INSERT OR UPDATE OR DELETE ON library_book",
        "INSERT INTO library_letter (text)"
        " VALUES (TG_OP || ' ' || coalesce(NEW.title, OLD.title)); RETURN NULL;",
    )
    Book.objects.create(pk=4, title="four")
    Book.objects.filter(pk__lt=3).update(year=1)
    Book.objects.filter(pk=4).update(title="4")
    Book.objects.filter(pk=4).delete()
    assert events() == ["4", "4", "4"]
    texts = dict(Letter.objects.values_list("pk", "text"))
    written = {"INSERT four", "UPDATE Book 1", "UPDATE Book 2", "UPDATE 4", "DELETE 4"}
    assert (set(texts.values()), len(texts)) == (written, 5)
    assert events("library.letterembedding") == [str(pk) for pk in sorted(texts)]
    in_step()


def test_triggers_of_two_sources_that_call_each_other(books, theirs, name, in_step):
    Letter.objects.create(pk=1, text="-")
    theirs(
        name,
        "AFTER UPDATE OF title ON library_book",
        "UPDATE library_letter SET text = NEW.title WHERE id = NEW.id AND text <> NEW.title;"
        " RETURN NULL;",
    )
    theirs(
        name,
        "AFTER UPDATE OF text ON library_letter",
        "UPDATE library_book SET title = left(NEW.text, -1)"
        " WHERE id = NEW.id AND length(title) > 1; RETURN NULL;",
    )
    Inbox.objects.all().delete()
    Book.objects.filter(pk=1).update(title="abc")
    assert events() == ["1", "1", "1"]
    assert events("library.letterembedding") == ["1", "1", "1"]
    in_step()
    assert (titles()[1], Letter.objects.get().text) == ("a", "a")


@pytest.mark.parametrize("fires", ["BEFORE UPDATE", "AFTER UPDATE"])
@pytest.mark.parametrize("for_each", ["ROW", "STATEMENT"])
def test_a_trigger_that_refuses_leaves_no_event(books, theirs, name, fires, for_each, in_step):
    theirs(name, f"{fires} ON library_book", "RAISE EXCEPTION 'no';", for_each)
    with transaction.atomic():
        Book.objects.create(pk=4, title="four")
        with pytest.raises(DatabaseError, match="no"), transaction.atomic():
            Book.objects.update(title="refused")
    assert events() == ["4"]
    in_step()


def test_a_trigger_that_swallows_its_own_failure_leaves_no_event_of_it(
    books, theirs, name, in_step
):
    theirs(
        name,
        "AFTER INSERT ON library_book",
        "BEGIN INSERT INTO library_letter (text) VALUES ('kept'), (NULL);"
        " EXCEPTION WHEN OTHERS THEN NULL; END; RETURN NULL;",
    )
    Book.objects.create(pk=4, title="four")
    assert (events(), events("library.letterembedding")) == (["4"], [])
    in_step()


def test_a_trigger_that_waits_for_the_commit(books, theirs, name, in_step):
    theirs(
        name,
        "AFTER INSERT ON library_book DEFERRABLE INITIALLY DEFERRED",
        "UPDATE library_book SET title = 'At last' WHERE id = NEW.id; RETURN NULL;",
    )
    with transaction.atomic():
        Book.objects.create(pk=4, title="four")
        Book.objects.create(pk=5, title="five")
        assert events() == ["4", "5"]
    assert events() == ["4", "5", "4", "5"]
    in_step()
    assert (titles()[4], titles()[5]) == ("At last", "At last")


def test_a_trigger_that_fails_at_the_commit_takes_the_events_along(books, theirs, name):
    theirs(
        name,
        "AFTER INSERT ON library_book DEFERRABLE INITIALLY DEFERRED",
        "INSERT INTO library_letter (text) VALUES (NULL); RETURN NULL;",
    )
    with pytest.raises(IntegrityError), transaction.atomic():
        Book.objects.bulk_create([Book(pk=4, title="four")])
    assert events() == []


@either_level
def test_many_triggers_at_once(books, theirs, in_step):
    """Rewritten before, written again after, and copied, on either side of ours."""
    for name in ("aaa", "zzz"):
        theirs(
            f"{name}_1",
            "BEFORE INSERT OR UPDATE ON library_book",
            "NEW.title := left(NEW.title || '!', 20); RETURN NEW;",
        )
        theirs(
            f"{name}_2",
            "AFTER INSERT OR UPDATE ON library_book",
            "IF EXISTS (SELECT FROM library_book WHERE body = '') THEN"
            " UPDATE library_book SET body = 'seen' WHERE body = ''; END IF; RETURN NULL;",
            "STATEMENT",
        )
        theirs(
            f"{name}_3",
            "AFTER INSERT ON library_book",
            "INSERT INTO library_letter (text) VALUES (NEW.title); RETURN NULL;",
        )
    execute("INSERT INTO library_book SELECT n, 'new', '', 1, true FROM generate_series(4, 9) n")
    execute("UPDATE library_book SET title = title || n FROM generate_series(1, 3) n")
    assert set(events()) == set("123456789")
    assert len(set(events("library.letterembedding"))) == 12
    in_step()


def test_rows_that_a_rule_adds_or_redirects(books, defined, in_step):
    """Rules rewrite statements before they run: what they make of them is captured as ever."""
    defined(
        "CREATE RULE added AS ON INSERT TO library_book"
        " DO ALSO INSERT INTO library_letter (text) VALUES ('A new book')",
        "DROP RULE added ON library_book",
    )
    defined(
        "CREATE RULE kept AS ON DELETE TO library_book"
        " DO INSTEAD UPDATE library_book SET published = false WHERE id = OLD.id",
        "DROP RULE kept ON library_book",
    )
    execute("INSERT INTO library_book VALUES (4, 'four', '', 1, true), (5, 'five', '', 1, true)")
    execute("DELETE FROM library_book WHERE id = 2")
    assert events() == ["4", "5", "2"]
    letters = [str(pk) for pk in Letter.objects.order_by("pk").values_list("pk", flat=True)]
    assert events("library.letterembedding") == letters
    assert letters
    in_step()
    assert not BookEmbedding.objects.filter(source_id=2).exists()


def test_rows_that_a_rule_keeps_away_make_no_event(books, defined, in_step):
    defined(
        "CREATE RULE frozen AS ON UPDATE TO library_book WHERE OLD.id = 2 DO INSTEAD NOTHING",
        "DROP RULE frozen ON library_book",
    )
    execute("UPDATE library_book SET title = 'changed'")
    assert sorted(events()) == ["1", "3"]
    in_step()


def test_writes_through_views(books, defined, theirs, in_step):
    """One that PostgreSQL sees through, one with a rule, and one with a trigger."""
    for view in ("plain", "ruled", "triggered"):
        defined(
            f"CREATE VIEW {view} AS SELECT id, title, body, year, published FROM library_book"
            + (" WHERE true ORDER BY 1" if view != "plain" else ""),
            f"DROP VIEW {view}",
        )
    defined(
        "CREATE RULE through AS ON UPDATE TO ruled"
        " DO INSTEAD UPDATE library_book SET title = NEW.title WHERE id = OLD.id",
        "DROP RULE through ON ruled",
    )
    theirs(
        "through",
        "INSTEAD OF DELETE ON triggered",
        "DELETE FROM library_book WHERE id = OLD.id; RETURN OLD;",
    )
    execute("INSERT INTO plain VALUES (4, 'four', '', 1, true)")
    execute("UPDATE ruled SET title = 'one' WHERE id = 1")
    execute("DELETE FROM triggered WHERE id = 3")
    assert events() == ["4", "1", "3"]
    in_step()
    assert titles() == {1: "one", 2: "Book 2", 4: "four"}
