"""Writes past the triggers: by way of other tables, and by replication. Each is told, and cured."""

from dataclasses import replace

import pytest
from django.db import connection

from embedsync.declaration import relation_of
from embedsync.models import Inbox
from embedsync.triggers import renew_triggers
from tests.books import execute
from tests.cinema.models import Film
from tests.hints import constraint_of, found, ids, run_hint
from tests.library.models import FlatPageEmbedding, Memo

pytestmark = pytest.mark.django_db

MEMOS = "library.memoembedding"


def events(sql):
    """The memos whose events a statement makes."""
    Inbox.objects.all().delete()
    execute(sql)
    return sorted(Inbox.objects.filter(sidecar=MEMOS).values_list("source_pk", flat=True))


def replicate(table):
    """A subscription fills a table: what CREATE SUBSCRIPTION leaves once it has connected."""
    execute("CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p WITH (connect = false)")
    execute(
        "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
        " SELECT oid, %s::regclass, 'r' FROM pg_subscription WHERE subname = 's'",
        [table],
    )


@pytest.fixture
def declare(monkeypatch):
    """Declare another ``capture=`` for a sidecar, and migrate."""

    def declare(sidecar, capture):
        relation = relation_of(sidecar)
        declaration = replace(relation.declaration, capture=capture)
        monkeypatch.setattr(relation, "declaration", declaration)
        monkeypatch.setattr(constraint_of(sidecar), "level", capture)
        renew_triggers(using="default")

    return declare


@pytest.fixture
def partitioned():
    """The memos are in a partitioned table, whose triggers the next migration made."""
    execute("ALTER TABLE library_memo RENAME TO memos_until_now")
    execute("CREATE TABLE library_memo (id int PRIMARY KEY, text text) PARTITION BY RANGE (id)")
    execute("CREATE TABLE memo_part PARTITION OF library_memo FOR VALUES FROM (0) TO (100)")
    renew_triggers(using="default")


@pytest.fixture
def part():
    """The table of the memos is a partition."""
    execute("ALTER TABLE library_memo ALTER id DROP IDENTITY")
    execute("CREATE TABLE memos (LIKE library_memo) PARTITION BY RANGE (id)")
    execute("ALTER TABLE memos ATTACH PARTITION library_memo FOR VALUES FROM (0) TO (100)")


@pytest.fixture
def children():
    """The memos are in a table with an inheritance child."""
    execute("CREATE TABLE memo_child () INHERITS (library_memo)")


class TestUnseenWrites:
    def test_a_partitioned_table_needs_row_triggers(self, partitioned, declare):
        [message] = found()
        assert (message.id, message.obj) == ("embedsync.W022", Memo.embedding.model)
        assert "directly into a partition of library_memo" in message.msg
        assert 'capture="row"' in message.hint
        assert events("INSERT INTO library_memo VALUES (1, 'a')") == ["1"]
        assert events("INSERT INTO memo_part VALUES (2, 'a')") == []
        declare(Memo.embedding.model, "row")
        assert found() == []
        assert events("INSERT INTO memo_part VALUES (3, 'a')") == ["3"]

    def test_a_table_that_is_a_partition_itself_needs_row_triggers(self, part, declare):
        [message] = found()
        assert message.id == "embedsync.W022"
        assert "into library_memo by way of the table that it is a part of" in message.msg
        assert events("INSERT INTO memos (id, text) VALUES (1, 'a')") == []
        declare(Memo.embedding.model, "row")
        assert found() == []
        assert events("INSERT INTO memos (id, text) VALUES (2, 'a')") == ["2"]

    def test_writes_into_an_inheritance_child_are_not_seen(self, children):
        [message] = found()
        assert message.id == "embedsync.W022"
        assert "directly into an inheritance child of library_memo" in message.msg
        assert "embed_sweep" in message.hint
        assert events("INSERT INTO memo_child (id, text) VALUES (1, 'a')") == []
        assert events("UPDATE library_memo SET text = 'b'") == ["1"]

    def test_row_triggers_see_nothing_of_an_inheritance_child(self, children, declare):
        declare(Memo.embedding.model, "row")
        [message] = found()
        assert message.id == "embedsync.W022"
        assert "changes in the inheritance children of library_memo" in message.msg
        assert 'capture="statement"' in message.hint
        execute("INSERT INTO memo_child (id, text) VALUES (1, 'a')")
        assert events("UPDATE library_memo SET text = 'b'") == []

    def test_related_tables_count(self):
        execute("CREATE TABLE old_reviews () INHERITS (press_review)")
        execute("CREATE TABLE old_genres () INHERITS (cinema_film_genres)")
        messages = found()
        assert [message.obj for message in messages] == [Film.embedding.model] * 2
        assert {message.id for message in messages} == {"embedsync.W022"}


class TestDisabled:
    def test_one_that_also_fires_for_replicas_is_enabled_so(self, declare):
        declare(Memo.embedding.model, "always")
        execute("ALTER TABLE library_memo DISABLE TRIGGER USER")
        [message] = found()
        run_hint(message)
        assert found() == []

    @pytest.mark.parametrize("capture", ["row", "always"])
    def test_one_that_is_disabled_in_a_partition_is_told(self, partitioned, declare, capture):
        declare(Memo.embedding.model, capture)
        assert found() == []
        execute("ALTER TABLE memo_part DISABLE TRIGGER library_memoembedding_sync_insert")
        [message] = found()
        assert message.id == "embedsync.W020"
        run_hint(message)
        assert found() == []
        assert events("INSERT INTO memo_part VALUES (1, 'a')") == ["1"]

    def test_a_partition_that_is_attached_later_is_no_fault(self, partitioned, declare):
        declare(Memo.embedding.model, "always")
        execute("CREATE TABLE more (id int PRIMARY KEY, text text)")
        execute("ALTER TABLE library_memo ATTACH PARTITION more FOR VALUES FROM (100) TO (200)")
        assert found() == []
        assert events("INSERT INTO more VALUES (100, 'a')") == ["100"]


class TestReplication:
    @pytest.fixture
    def subscription(self, transactional_db):
        """This database subscribes to its own flat pages; nothing is transferred."""
        parameters = connection.get_connection_params()
        names = ("host", "port", "user", "password", "dbname")
        where = " ".join(f"{name}={parameters[name]}" for name in names if parameters.get(name))
        execute("CREATE PUBLICATION pages FOR TABLE django_flatpage")
        execute(
            f"CREATE SUBSCRIPTION pages CONNECTION '{where}' PUBLICATION pages"
            " WITH (enabled = false, create_slot = false, copy_data = false)"
        )
        yield
        execute("ALTER SUBSCRIPTION pages SET (slot_name = NONE)")
        execute("DROP SUBSCRIPTION pages")
        execute("DROP PUBLICATION pages")

    @pytest.mark.django_db(transaction=True)
    def test_a_table_that_a_subscription_fills_is_told(self, subscription):
        [message] = found()
        assert (message.id, message.obj) == ("embedsync.W023", FlatPageEmbedding)
        assert "writes into django_flatpage" in message.msg
        assert 'capture="always"' in message.hint

    @pytest.mark.parametrize("filled", ["library_memo", "memo_part", "part_of_part", "its_part"])
    def test_only_triggers_that_fire_always_will_do(self, partitioned, declare, filled):
        execute(
            "CREATE TABLE part_of_part PARTITION OF library_memo"
            " FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id)"
        )
        execute("CREATE TABLE its_part PARTITION OF part_of_part DEFAULT")
        replicate(filled)
        assert ids() == ["W022", "W023"]
        declare(Memo.embedding.model, "row")
        assert ids() == ["W023"]
        declare(Memo.embedding.model, "always")
        assert found() == []

    def test_what_the_table_is_a_partition_of_may_be_filled(self, part):
        replicate("memos")
        assert ids() == ["W022", "W023"]

    def test_related_tables_count(self):
        replicate("press_review")
        [message] = found()
        assert (message.id, message.obj) == ("embedsync.W023", Film.embedding.model)
