"""Django's admin: what is owed, row by row, the two actions on it, and who may do what."""

import re
import threading

import psycopg
import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection, connections
from django.urls import reverse

from embedsync.ledger import discard
from embedsync.models import Ledger, LedgerRow, SidecarState, WorkerState
from embedsync.queue import Queue
from tests.books import KEY, BookEmbedding, execute, make_due
from tests.library.models import Book
from tests.owed import (
    BOOKS,
    LATER,
    LEDGER,
    PARCEL_KEY,
    SIDECARS,
    TOKEN,
    WORKERS,
    act,
    key,
    listed,
    owe,
    owe_all_kinds,
)
from tests.sync import assert_in_step

pytestmark = pytest.mark.django_db


@pytest.fixture
def rows(db):
    owe_all_kinds()


@pytest.fixture
def staff(client):
    """Log in somebody with these permissions; returns the client."""

    def log_in(*codenames):
        user = User.objects.create_user("staff", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return client

    return log_in


def left():
    return sorted(Ledger.objects.values_list("source_pk", flat=True))


class TestLedger:
    def test_each_row_is_told_of_in_words(self, admin_client, rows):
        found = listed(admin_client.get(LEDGER))
        assert {pk: row["state"] for pk, row in found.items()} == {
            "parked": "parked",
            "other": "parked",
            "waits": "waiting",
            "late": "waiting",
            "leased": "leased",
        }
        assert found["parked"]["age"].replace("\xa0", " ") == "2 hours, 1 minute"
        assert found["leased"]["age"].endswith(" s")
        assert found["leased"]["worker"] == "host:1"
        assert found["parked"]["attempts"] == "3"
        assert found["parked"]["sidecar"] == KEY

    def test_of_an_error_one_line_is_shown_and_no_row(self, admin_client, rows):
        page = admin_client.get(LEDGER)
        assert listed(page)["parked"]["short_error"] == "DataError: bad"
        assert len(listed(page)["other"]["short_error"]) == 100
        detail = admin_client.get(reverse("admin:embedsync_ledgerrow_change", args=[key("parked")]))
        assert b"DataError: bad" in detail.content
        assert b"secret" not in page.content + detail.content
        assert not listed(admin_client.get(LEDGER, {"q": "secret"}))

    def test_it_says_what_is_not_in_it(self, admin_client):
        page = admin_client.get(LEDGER).content.decode()
        assert "events that nobody has seen are counted in Sidecar states" in page

    @pytest.mark.parametrize(
        ("query", "pks"),
        [
            ({"state": "parked"}, {"parked", "other"}),
            ({"state": "waiting"}, {"waits", "late"}),
            ({"state": "leased"}, {"leased"}),
            ({"sidecar": PARCEL_KEY}, {"other"}),
            ({"sidecar": KEY, "state": "parked"}, {"parked"}),
            ({"worker": "host:1"}, {"leased"}),
            ({"q": "ratelimit"}, {"other"}),
            ({"q": "aits"}, {"waits"}),
            ({"sidecar": "gone.thing"}, set()),
        ],
    )
    def test_rows_are_filtered_and_found(self, admin_client, rows, query, pks):
        WorkerState.objects.create(name="host:1")
        SidecarState.objects.get_or_create(key=PARCEL_KEY)
        assert set(listed(admin_client.get(LEDGER, query))) == pks

    @pytest.mark.parametrize("column", range(1, 8))
    def test_each_column_orders_them(self, admin_client, rows, column):
        assert len(listed(admin_client.get(LEDGER, {"o": column}))) == 5

    def test_the_age_orders_the_youngest_first(self, admin_client, rows):
        assert list(listed(admin_client.get(LEDGER, {"o": "5"})))[-1] == "parked"

    def test_keys_of_all_kinds_have_a_page(self, admin_client):
        for pk in ('["a b", "2"]', "a/b?c#d_5F", " ", "ü"):
            owe(pk)
            page = admin_client.get(reverse("admin:embedsync_ledgerrow_changelist"))
            url = re.search(rf'href="({LEDGER}[^"]+/change/[^"]*)"', page.content.decode())
            response = admin_client.get(url[1])
            assert response.status_code == 200
            assert response.context["original"].source_pk == pk
            assert "1 of 1 row discarded" in act(admin_client, "discard", key(pk))

    @pytest.mark.parametrize("row", ["nothing", key("77")])
    def test_a_row_that_is_not_there_has_no_page(self, admin_client, row):
        url = reverse("admin:embedsync_ledgerrow_change", args=[quote(row)])
        assert admin_client.get(url).status_code == 302

    def test_nothing_can_be_written(self, admin_client, rows):
        url = reverse("admin:embedsync_ledgerrow_change", args=[key("parked")])
        assert b'name="_save"' not in admin_client.get(url).content
        assert admin_client.post(url, {"attempts": "0"}).status_code == 403
        assert admin_client.get(f"{LEDGER}add/").status_code == 403
        assert (
            admin_client.post(url.replace("change", "delete"), {"post": "yes"}).status_code == 403
        )
        act(admin_client, "delete_selected", key("parked"), post="yes")
        assert len(left()) == 5

    def test_many_rows_cost_no_more_queries(self, admin_client, django_assert_max_num_queries):
        for n in range(150):
            owe(str(n))
        with django_assert_max_num_queries(8):
            assert len(listed(admin_client.get(LEDGER))) == 100

    def test_a_page_reads_no_more_of_the_ledger_than_it_shows(self, admin_client):
        execute(
            "INSERT INTO embedsync_ledger (sidecar, source_pk, queued_at)"
            " SELECT %s, n::text, now() FROM generate_series(1, 20000) n",
            [KEY],
        )
        execute("ANALYZE embedsync_ledger")
        rows = admin.site.get_model_admin(LedgerRow)
        request = admin_client.get(LEDGER).wsgi_request
        shown = rows.get_changelist_instance(request).queryset[:100]
        plan = shown.explain(analyze=True)
        assert "Seq Scan" not in plan
        assert "Index Scan using embedsync_ledger_pkey" in plan


class TestActions:
    def test_parked_rows_are_due_again(self, admin_client, rows):
        said = act(admin_client, "retry", key("parked"), key("other", PARCEL_KEY), key("leased"))
        assert said == "2 of 3 rows due again. The others are not parked."
        assert not Ledger.objects.filter(run_at=None).exists()
        assert act(admin_client, "retry", key("leased")).startswith("0 of 1 row")
        [leased] = Ledger.objects.filter(source_pk="leased")
        assert str(leased.token) == TOKEN

    def test_what_no_worker_holds_is_discarded(self, admin_client, rows):
        keys = [row.key for row in LedgerRow.objects.all()]
        said = act(admin_client, "discard", *keys)
        assert said.startswith("4 of 5 rows discarded. The others are in a worker's hands")
        assert "embed_sweep --repair" in said
        assert left() == ["leased"]
        said = act(admin_client, "discard", *keys)
        assert said == "0 of 1 row discarded. The others are in a worker's hands, or done by now."

    def test_all_rows_of_a_filter_may_be_chosen(self, admin_client, monkeypatch):
        monkeypatch.setattr("embedsync.admin.ROWS_AT_ONCE", 50)
        for n in range(120):
            owe(str(n))
        owe("leased", LATER, token=TOKEN)
        data = {"action": "discard", "_selected_action": [key("1")], "select_across": "1"}
        admin_client.post(f"{LEDGER}?state=parked", data)
        assert left() == ["leased"]

    @pytest.mark.django_db(transaction=True)
    def test_a_row_that_failed_is_embedded_after_all(self, admin_client, drain, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        drain()
        book = Book.objects.create(title="FAIL")
        drain()
        assert listed(admin_client.get(LEDGER, {"state": "parked"})).keys() == {str(book.pk)}
        execute("SET embedsync.capture = 'off'")
        Book.objects.update(title="mended")
        execute("RESET embedsync.capture")
        act(admin_client, "retry", key(book.pk))
        drain()
        assert_in_step(BookEmbedding)

    @pytest.mark.django_db(transaction=True)
    def test_what_is_discarded_is_found_by_a_sweep(self, admin_client, drain):
        drain()
        book = Book.objects.create(title="one")
        [claim] = Queue("default", "a worker").fold([KEY], 10)[1]
        make_due()  # the lease has run out
        assert act(admin_client, "discard", key(book.pk)).startswith("1 of 1")
        assert claim.pks == [str(book.pk)]
        drain()
        assert not BookEmbedding.objects.exists()
        call_command("embed_sweep", "library.Book", repair=True, verbosity=0)
        drain()
        assert_in_step(BookEmbedding)

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize(("token", "discarded"), [(TOKEN, 0), (None, 1)])
    def test_a_row_that_changes_meanwhile_is_looked_at_again(self, token, discarded):
        """A lease that is taken while the row's lock is waited for is not pulled away."""
        owe("1", "now()")
        found = []

        def run():
            try:
                found.append(discard("default", [(KEY, "1")]))
            finally:
                connections["default"].close()

        with psycopg.connect(**connection.get_connection_params()) as worker:
            worker.execute(
                f"UPDATE embedsync_ledger SET token = %s, run_at = {LATER}, attempts = 7", [token]
            )
            thread = threading.Thread(target=run)
            thread.start()
            wait_for_a_lock(worker)
            assert found == []
            worker.commit()
            thread.join()
        assert found == [discarded]
        assert Ledger.objects.count() == 1 - discarded


def wait_for_a_lock(session):
    """Until another session waits for one."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    for _ in range(500):
        session.execute("SELECT pg_stat_clear_snapshot(), pg_sleep(0.02)")
        if session.execute(waits).fetchone()[0]:
            return
    raise AssertionError("nobody waits")


class TestRights:
    @pytest.mark.parametrize("url", [LEDGER, SIDECARS, WORKERS, BOOKS])
    def test_a_stranger_is_asked_to_log_in(self, client, url):
        response = client.get(url)
        assert response.status_code == 302
        assert "/admin/login/" in response["Location"]

    @pytest.mark.parametrize("url", [LEDGER, SIDECARS, WORKERS])
    def test_who_may_not_look_is_refused(self, staff, url):
        assert staff("view_movie").get(url).status_code == 403

    @pytest.mark.parametrize(
        ("permissions", "actions"),
        [
            (["view_ledgerrow"], []),
            (["change_ledgerrow"], ["retry"]),  # which lets one look, too
            (["view_ledgerrow", "delete_ledgerrow"], ["discard"]),
        ],
    )
    def test_each_action_takes_a_permission(self, staff, rows, permissions, actions):
        client = staff(*permissions)
        page = client.get(LEDGER)
        assert re.findall(r'<option value="(retry|discard)"', page.content.decode()) == actions
        assert len(listed(page)) == 5
        for action in {"retry", "discard"} - set(actions):
            act(client, action, key("parked"))
        [row] = Ledger.objects.filter(source_pk="parked")
        assert row.run_at is None

    def test_who_may_look_sees_sidecars_and_workers(self, staff):
        client = staff("view_sidecarstate", "view_workerstate")
        assert client.get(SIDECARS).status_code == client.get(WORKERS).status_code == 200
        assert client.get(LEDGER).status_code == 403

    @pytest.mark.parametrize(
        ("rights", "action", "said"),
        [
            ("SELECT, UPDATE", "retry", "1 of 1 row due again."),
            ("SELECT, UPDATE, DELETE", "discard", "1 of 1 row discarded."),
        ],
    )
    def test_a_role_needs_few_rights(self, admin_client, rows, rights, action, said):
        """Those that docs/operations.md names, beside those on Django's own tables."""
        execute("CREATE ROLE embedsync_site")
        for table in connection.introspection.table_names():
            if table.startswith(("auth_", "django_")):
                execute(f"GRANT ALL ON {table} TO embedsync_site")
        ours = ("inbox", "ledger_row", "sidecar", "worker", "minute")
        execute(f"GRANT SELECT ON {', '.join(f'embedsync_{n}' for n in ours)} TO embedsync_site")
        execute(f"GRANT {rights} ON embedsync_ledger TO embedsync_site")
        execute("SET LOCAL ROLE embedsync_site")
        assert len(listed(admin_client.get(LEDGER))) == 5
        assert listed(admin_client.get(SIDECARS))[KEY]["embedded"] == "?"
        assert admin_client.get(f"{BOOKS}change/").status_code == 200
        assert admin_client.get(WORKERS).status_code == 200
        assert act(admin_client, action, key("parked")).startswith(said)
