"""System checks of triggers: each fault is made for real, and its cure is tried."""

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test.utils import CaptureQueriesContext

from embedsync.capture import SyncTrigger
from embedsync.models import SidecarState
from embedsync.triggers import renew_triggers, trigger_states
from tests.books import KEY, BookEmbedding, attach, drop_functions, execute
from tests.hints import constraint_of, found, ids, run_hint
from tests.library.models import Book, Memo, Novel
from tests.sync import assert_in_step

pytestmark = pytest.mark.django_db

BOOK_INSERT = "library_bookembedding_sync_insert"


def state(name):
    """The state of one trigger."""
    [found] = {s.state for s in trigger_states("default") if s.name == name}
    return found


class TestMissingAndOutdated:
    def test_a_clean_database_is_looked_at_without_reading_migrations(self):
        with CaptureQueriesContext(connection) as queries:
            assert found() == []
        assert not [query for query in queries if "django_migrations" in query["sql"]]

    def test_a_dropped_trigger_is_named_and_migrate_makes_it_anew(self):
        execute(f"DROP TRIGGER {BOOK_INSERT} ON library_book")
        [message] = found()
        assert (message.id, message.obj) == ("embedsync.W019", BookEmbedding)
        assert f"missing: {BOOK_INSERT} on library_book." in message.msg
        assert "library_bookembedding_sync_update" not in message.msg
        assert "migrate" in message.hint
        call_command("migrate", verbosity=0)
        assert found() == []

    def test_one_message_names_all_tables_of_a_sidecar(self):
        for name in ("insert", "delete"):
            execute(f"DROP TRIGGER library_novelembedding_sync_{name} ON library_novel")
        execute("DROP TRIGGER library_novelembedding_sync_1_update ON library_work")
        [message] = found()
        assert message.obj is Novel.embedding.model
        assert (
            "missing: library_novelembedding_sync_delete, library_novelembedding_sync_insert"
            " on library_novel; library_novelembedding_sync_1_update on library_work."
            in message.msg
        )

    def test_triggers_of_another_declaration_are_outdated(self):
        older = SyncTrigger(key=KEY, fields=["title"], name=constraint_of(BookEmbedding).name)
        with connection.schema_editor() as editor:
            editor.remove_constraint(BookEmbedding, older)
            editor.add_constraint(BookEmbedding, older)
        [message] = found()
        assert message.id == "embedsync.W019"
        assert "outdated: library_bookembedding_sync_update on library_book." in message.msg
        assert "missing" not in message.msg

    def test_a_trigger_that_fires_for_replicas_only_is_outdated(self):
        execute(f"ALTER TABLE library_book ENABLE REPLICA TRIGGER {BOOK_INSERT}")
        assert (ids(), state(BOOK_INSERT)) == (["W019"], "outdated")

    def test_a_trigger_on_a_table_that_is_no_longer_watched_is_outdated(self):
        attach("left_over", "library_hall", KEY)
        [message] = found()
        assert "outdated: left_over on library_hall." in message.msg
        call_command("migrate", verbosity=0)
        assert found() == []

    def test_nothing_is_told_while_an_app_of_the_sidecar_waits_for_a_migration(self):
        execute(f"DROP TRIGGER {BOOK_INSERT} ON library_book")
        execute("DROP TRIGGER cinema_filmembedding_sync_insert ON cinema_film")
        assert ids() == ["W019", "W019"]
        # Of reviews, which films know nothing of.
        MigrationRecorder(connection).record_unapplied("press", "0001_initial")
        [message] = found()
        assert message.obj is BookEmbedding
        MigrationRecorder(connection).record_unapplied("library", "0001_initial")
        assert found() == []

    def test_a_database_without_our_tables_is_silent(self):
        drop_functions()
        execute("DROP TABLE embedsync_inbox, embedsync_ledger, embedsync_sidecar CASCADE")
        assert found() == []

    def test_a_sidecar_whose_table_is_yet_to_be_made_is_silent(self):
        execute("DROP TABLE library_bookembedding CASCADE")
        assert found() == []

    def test_a_sidecar_that_is_not_managed_has_no_triggers_of_ours(self, monkeypatch):
        execute(f"DROP TRIGGER {BOOK_INSERT} ON library_book")
        monkeypatch.setattr(BookEmbedding._meta, "managed", False)
        assert found() == []
        renew_triggers(using="default")
        monkeypatch.undo()
        assert state(BOOK_INSERT) == "missing"


class TestMigrate:
    @pytest.mark.django_db(transaction=True)
    def test_what_was_missed_without_a_trigger_is_compared_after_migrate(self, drain):
        Book.objects.create(title="before")
        drain()
        assert_in_step(BookEmbedding)
        execute(f"DROP TRIGGER {BOOK_INSERT} ON library_book")
        Book.objects.create(title="missed")
        drain()
        assert BookEmbedding.objects.count() == 1
        call_command("migrate", verbosity=0)
        assert SidecarState.objects.get(key=KEY).backfilled_at is None
        drain()
        assert BookEmbedding.objects.count() == 2
        assert_in_step(BookEmbedding)

    @pytest.mark.django_db(transaction=True)
    def test_migrate_compares_no_rows_where_all_is_well(self, drain):
        Book.objects.create(title="before")
        drain()
        filled = SidecarState.objects.get(key=KEY).backfilled_at
        assert filled
        call_command("migrate", verbosity=0)
        assert SidecarState.objects.get(key=KEY).backfilled_at == filled

    def test_migrate_makes_all_anew_where_all_was_dropped(self):
        drop_functions()
        execute("DROP VIEW embedsync_trigger")
        execute("DROP PROCEDURE embedsync_lock")
        assert "W019" in ids()
        call_command("migrate", verbosity=0)
        assert found() == []

    def test_migrate_goes_on_where_a_source_was_dropped(self, caplog):
        execute("DROP TABLE library_memo CASCADE")
        execute(f"DROP TRIGGER {BOOK_INSERT} ON library_book")
        call_command("migrate", verbosity=0)
        assert "the triggers of library.memoembedding wait for a table" in caplog.text
        assert state(BOOK_INSERT) == "installed"
        [message] = found()
        assert message.obj is Memo.embedding.model


class TestDisabled:
    def test_a_disabled_trigger_is_told_and_the_hint_enables_it(self):
        execute(f"ALTER TABLE library_book DISABLE TRIGGER {BOOK_INSERT}")
        [message] = found()
        assert (message.id, message.obj) == ("embedsync.W020", BookEmbedding)
        assert f"{BOOK_INSERT} on library_book." in message.msg
        assert "embed_sweep --repair" in message.hint
        run_hint(message)
        assert found() == []

    def test_migrate_leaves_it_disabled(self):
        execute("ALTER TABLE library_book DISABLE TRIGGER USER")
        call_command("migrate", verbosity=0)
        assert {s.state for s in trigger_states("default") if s.key == KEY} == {"disabled"}
        assert ids() == ["W020"]


class TestOrphans:
    @pytest.fixture
    def orphan(self):
        execute('CREATE TABLE "Their Table" (id int PRIMARY KEY)')
        attach('"their trigger"', '"Their Table"', "library.gone")

    def test_an_orphan_is_told_and_the_hint_drops_it(self, orphan):
        [message] = found()
        assert message.id == "embedsync.W021"
        assert "library.gone" in message.msg
        assert 'their trigger on "Their Table"' in message.msg
        assert "another project" in message.hint
        run_hint(message)
        assert found() == []

    def test_migrate_leaves_it_alone(self, orphan):
        call_command("migrate", verbosity=0)
        assert ids() == ["W021"]

    def test_nothing_is_told_while_a_migration_may_be_about_to_drop_it(self, orphan):
        MigrationRecorder(connection).record_unapplied("library", "0001_initial")
        assert found() == []

    def test_it_is_told_in_a_database_that_has_no_sidecar(self, orphan, settings):
        class Elsewhere:
            def db_for_write(self, model, **hints):
                return "elsewhere"

        settings.DATABASE_ROUTERS = [Elsewhere()]
        assert ids() == ["W021"]

    def test_triggers_of_a_sidecar_that_is_migrated_under_another_alias_are_no_orphans(
        self, settings
    ):
        class Replica:
            def allow_migrate(self, db, app_label, **hints):
                return False

        settings.DATABASE_ROUTERS = [Replica()]
        assert found() == []
        assert trigger_states("default") == []
