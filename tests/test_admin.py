"""Django's admin: what is owed, how each sidecar is, who works; and two actions on the ledger."""

import re
import threading
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, connections
from django.urls import reverse
from django.utils import timezone

from embedsync import chart
from embedsync.admin import in_words
from embedsync.models import Ledger, LedgerRow, Minute, SidecarState, WorkerState
from embedsync.queue import Queue, discard
from tests.books import KEY, BookEmbedding, execute, make_due, renamed
from tests.library.models import Book
from tests.migration_project import Project
from tests.shop import DECLARED, insert
from tests.sync import assert_in_step
from tests.test_browser import browser  # noqa: F401
from tests.test_browser import pytestmark as needs_browser

pytestmark = pytest.mark.django_db

PARCEL_KEY = "library.parcelembedding"
LEDGER = "/admin/embedsync/ledgerrow/"
SIDECARS = "/admin/embedsync/sidecarstate/"
WORKERS = "/admin/embedsync/workerstate/"
BOOKS = f"{SIDECARS}library.bookembedding/"
TOKEN = "b6a1b5a6-6f0a-4a3c-9d3e-0e5a3f1f2c11"


def key(pk, sidecar=KEY):
    return f"{sidecar} {pk}"


def owe(pk, run_at="NULL", *, key=KEY, token=None, error="", ago=0, worker=""):
    """A row of the ledger; ``run_at`` is SQL."""
    execute(
        "INSERT INTO embedsync_ledger"
        " (sidecar, source_pk, run_at, token, queued_at, last_error, worker, attempts)"
        f" VALUES (%s, %s, {run_at}, %s, now() - %s * interval '1 second', %s, %s, 3)",
        [key, pk, token, ago, error, worker],
    )


LATER, EARLIER = "now() + interval '1 hour'", "now() - interval '1 hour'"


@pytest.fixture
def rows(db):
    """Two parked rows, one that waits, one whose lease has run out, and one in a worker's hands."""
    owe("parked", error="DataError: bad\nDETAIL: row (1, secret)", ago=7300)
    owe("other", key=PARCEL_KEY, error="RateLimit: " + "x" * 300)
    owe("waits", LATER)
    owe("late", EARLIER, token=TOKEN, worker="dead")
    owe("leased", LATER, token=TOKEN, worker="host:1")


@pytest.fixture
def staff(client):
    """Log in somebody with these permissions; returns the client."""

    def log_in(*codenames):
        user = User.objects.create_user("staff", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return client

    return log_in


def listed(response):
    """The rows of a list, by what stands in their first column, as texts by column."""
    cells = re.compile(r'<t[hd] class="field-(\w+)[^>]*>(.*?)</t[hd]>', re.DOTALL)
    found = {}
    for line in re.findall(r"<tr>.*?</tr>", response.content.decode(), re.DOTALL):
        texts = {name: re.sub(r"<[^>]+>", "", text).strip() for name, text in cells.findall(line)}
        if texts:
            found[next(iter(texts.values()))] = texts
    return found


def act(client, action, *pks, **more):
    """Run an action on rows; returns what is said afterwards."""
    data = {"action": action, "_selected_action": list(pks), **more}
    response = client.post(LEDGER, data, follow=True)
    assert response.status_code == 200
    return " ".join(map(str, response.context["messages"]))


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
            assert "1 of 1 rows were discarded" in act(admin_client, "discard", key(pk))

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
        assert said == "2 of 3 rows are due again. The others are not parked."
        assert not Ledger.objects.filter(run_at=None).exists()
        assert act(admin_client, "retry", key("leased")).startswith("0 of 1 rows")
        [leased] = Ledger.objects.filter(source_pk="leased")
        assert str(leased.token) == TOKEN

    def test_what_no_worker_holds_is_discarded(self, admin_client, rows):
        keys = [row.key for row in LedgerRow.objects.all()]
        said = act(admin_client, "discard", *keys)
        assert said.startswith("4 of 5 rows were discarded. The others are in a worker's hands")
        assert "embed_sweep --repair" in said
        assert left() == ["leased"]
        said = act(admin_client, "discard", *keys)
        assert (
            said
            == "0 of 1 rows were discarded. The others are in a worker's hands, or done by now."
        )

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
            (["view_ledgerrow", "change_ledgerrow"], ["retry"]),
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


class TestSidecars:
    def test_each_is_told_of(self, admin_client, rows):
        found = listed(admin_client.get(SIDECARS))[KEY]
        assert {name: found[name] for name in ("embedded", "waiting", "leased", "parked")} == {
            "embedded": "0",
            "waiting": "2",
            "leased": "1",
            "parked": "1",
        }
        assert found["fill"] == "complete"

    @pytest.mark.django_db(transaction=True)
    def test_its_page_tells_more(self, admin_client, drain, settings):
        settings.EMBEDSYNC_MAX_ATTEMPTS = 1
        Book.objects.bulk_create([Book(title="good"), Book(title="FAIL")])
        drain()
        WorkerState.objects.create(name="alive", doing="embedding library.bookembedding")
        WorkerState.objects.create(name="dead", seen_at=timezone.now() - timedelta(minutes=4))
        page = admin_client.get(BOOKS, follow=True).content.decode()
        assert "RuntimeError: the provider is unwell" in page
        assert "embedding library.bookembedding" in page
        assert "dead" not in page
        assert f"{LEDGER}?sidecar={KEY}" in page
        assert page.count("<svg class") == 2
        assert page.count('class="bar"') == 96

    def test_what_the_project_or_the_database_has_no_more_breaks_nothing(self, admin_client):
        SidecarState.objects.create(key="gone.thing")
        with renamed("library_bookembedding"), renamed("library_parcel", "no_parcel"):
            found = listed(admin_client.get(SIDECARS))
            page = admin_client.get(BOOKS, follow=True)
        assert found["gone.thing"]["fill"] == "not declared by this project"
        assert found["gone.thing"]["waiting"] == "-"
        assert found[KEY]["embedded"] == "?"
        assert b"table library_bookembedding is missing" in page.content
        page = admin_client.get(f"{SIDECARS}gone.thing/change/")
        assert b"not declared by this project" in page.content

    def test_numbers_of_other_countries_do_not_bend_the_chart(self, admin_client, settings):
        settings.LANGUAGE_CODE = "de"
        settings.USE_THOUSAND_SEPARATOR = True
        now = timezone.now().replace(second=0, microsecond=0)
        Minute.objects.create(sidecar=KEY, minute=now, embedded=12345, waiting=54321)
        page = admin_client.get(BOOKS, follow=True).content.decode()
        assert 'x="1425"' in page
        assert " 1432,0" in page
        assert "12.345" in page

    def test_a_page_costs_few_queries(self, admin_client, django_assert_max_num_queries):
        count = SidecarState.objects.count()
        assert count > 5
        with django_assert_max_num_queries(12 + 3 * count):
            assert len(listed(admin_client.get(SIDECARS))) == count
        with django_assert_max_num_queries(18):
            assert admin_client.get(f"{BOOKS}change/").status_code == 200

    def test_one_that_is_not_there_has_no_page(self, admin_client):
        assert admin_client.get(f"{SIDECARS}nothing/change/").status_code == 302


class TestChart:
    START = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def minute(self, minutes, **counts):
        return Minute(
            sidecar=KEY,
            minute=self.START + timedelta(minutes=minutes),
            **{"embedded": 0, "unchanged": 0, "failed": 0, "waiting": 0, **counts},
        )

    def test_minutes_are_put_together_by_steps(self):
        minutes = [
            self.minute(0, embedded=3, unchanged=2, failed=1, waiting=7),
            self.minute(14, embedded=10, waiting=4),
            self.minute(15, unchanged=1),
            self.minute(24 * 60 - 1, failed=5),
        ]
        found = chart.points(minutes, self.START, 24)
        assert len(found) == 96
        assert found[0] == chart.Point(self.START, done=15, failed=1, waiting=7)
        assert found[1] == chart.Point(self.START + timedelta(minutes=15), done=1)
        assert found[2] == chart.Point(self.START + timedelta(minutes=30))
        assert found[95].failed == 5

    def test_bars_and_line_fill_the_plot(self):
        minutes = [self.minute(0, embedded=30, failed=10, waiting=8), self.minute(59, embedded=1)]
        points = chart.points(minutes, self.START, 1)
        drawn = chart.Chart(1, self.START + timedelta(hours=1), points)
        first, second, *_, last = drawn.bars
        assert (first.x, first.width, first.done, first.failed) == (0, 24, 150, 50)
        assert (first.done_top, first.failed_top) == (50, 0)
        assert (second.done, second.failed, second.done_top) == (0, 0, 200)
        assert (last.x, last.done) == (1416, 5)
        assert drawn.line.split()[:2] == ["12,0", "36,200"]
        assert (drawn.done, drawn.failed, drawn.most_done, drawn.most_waiting) == (31, 10, 40, 8)

    def test_a_quiet_day_is_flat(self, db):
        quiet = chart.Chart.of(KEY)
        assert {bar.done + bar.failed for bar in quiet.bars} == {0}
        assert {point.split(",")[1] for point in quiet.line.split()} == {"200"}

    @pytest.mark.parametrize(
        ("asked", "hours", "bars"),
        [("1", 1, 60), ("6", 6, 72), ("24", 24, 96), ("48", 48, 96), ("", 24, 96), ("x", 24, 96)],
    )
    def test_the_hours_can_be_chosen(self, admin_client, asked, hours, bars):
        now = timezone.now()
        for minutes in (0, 59, 61, 60 * 48 - 31):
            Minute.objects.create(
                sidecar=KEY, minute=now - timedelta(minutes=minutes), unchanged=1, waiting=minutes
            )
        Minute.objects.create(sidecar=PARCEL_KEY, minute=now, embedded=100)
        page = admin_client.get(f"{BOOKS}change/", {"hours": asked})
        assert page.context["chart"].hours == hours
        assert page.content.decode().count('class="bar"') == bars
        assert page.context["chart"].points[-1].done in (1, 2)
        assert page.context["chart"].done == {1: 2, 6: 3, 24: 3, 48: 4}[hours]

    def test_now_is_in_the_last_step(self):
        now = datetime(2026, 1, 1, 23, 59, 59, tzinfo=UTC)
        for step in chart.STEPS.values():
            assert chart.end_of_step(now, step) == datetime(2026, 1, 2, tzinfo=UTC)


class TestWorkers:
    def test_each_is_alive_or_not(self, admin_client, django_assert_max_num_queries):
        WorkerState.objects.create(name="host:1", doing="embedding", settled=7)
        WorkerState.objects.create(name="host:2", seen_at=timezone.now() - timedelta(minutes=4))
        with django_assert_max_num_queries(6):
            page = admin_client.get(WORKERS)
        assert [row.alive for row in page.context["cl"].result_list] == [True, False]
        assert listed(page)["host:1"]["settled"] == "7"
        assert b"host:1" in admin_client.get(f"{WORKERS}host_3A1/change/").content


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (0.2, "0 s"), (59, "59 s"), (61, "1 minute"), (90061, "1 day, 1 hour")],
)
def test_a_time_is_told_in_words(seconds, words):
    assert in_words(seconds).replace("\xa0", " ") == words


def test_sidecars_are_not_shown_because_django_refuses_them():
    """So no vector gets onto a page by mistake: composite keys are refused, and inlines too."""

    class Inline(admin.TabularInline):
        model = BookEmbedding

    class BookAdmin(admin.ModelAdmin):
        inlines = [Inline]

    with pytest.raises(ImproperlyConfigured, match="composite primary key"):
        admin.site.register(BookEmbedding)
    assert [error.id for error in BookAdmin(Book, admin.site).check()] == ["admin.E202"]


CONTRIB = ["admin", "auth", "contenttypes", "messages", "sessions"]
TWO_DATABASES = """
DATABASES["other"] = {other!r}
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "urls"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {{"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]}},
}}]
STATIC_URL = "static/"

class Router:
    def db_for_read(self, model, **hints):
        return "other" if model._meta.app_label in ("embedsync", "shop") else "default"

    db_for_write = db_for_read

DATABASE_ROUTERS = ["settings.Router"]
"""
URLS = """
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
"""
A_VISIT = """
from django.contrib.auth.models import User
from django.test import Client
from django.test.utils import setup_test_environment

setup_test_environment()  # which keeps what templates were told
client = Client()
client.force_login(User.objects.create_superuser("admin"))
ledger = "/admin/embedsync/ledgerrow/"
for action in ("retry", "discard"):
    data = {"action": action, "_selected_action": ["shop.movieembedding 1"]}
    page = client.post(ledger, data, follow=True)
    print(page.status_code, *page.context["messages"])
page = client.get("/admin/embedsync/sidecarstate/shop.movieembedding/change/")
print(page.status_code, page.context["original"].status.rows)
"""


def test_it_works_on_the_database_that_the_router_names(project, tmp_path):
    other = Project(tmp_path / "other", project.server)
    (tmp_path / "urls.py").write_text(URLS)
    try:
        code = project.code(
            DECLARED.models,
            apps=[f"django.contrib.{name}" for name in CONTRIB],
            more=TWO_DATABASES.format(other=other.database()),
        )
        code.run("makemigrations")
        code.run("migrate")
        code.run("migrate", "--database", "other")
        insert(other, "one", "two")
        code.run("embed_worker", "--drain", "--database", "other")
        other.sql(
            "INSERT INTO embedsync_ledger (sidecar, source_pk, queued_at)"
            " VALUES ('shop.movieembedding', '1', now()), ('shop.movieembedding', '2', now())"
        )
        said = code.run("shell", "--no-imports", "-c", A_VISIT)
        assert "200 1 of 1 rows are due again." in said
        assert "200 1 of 1 rows were discarded." in said
        assert "200 2\n" in said
        assert other.sql("SELECT source_pk FROM embedsync_ledger") == [("2",)]
    finally:
        other.remove()


def test_it_is_not_asked_for_where_there_is_no_admin(project):
    code = project.code(DECLARED.models)
    asked = (
        "import sys; print({'embedsync.admin', 'django.contrib.admin.options'} & {*sys.modules})"
    )
    assert code.run("shell", "--no-imports", "-c", asked).strip() == "set()"


@needs_browser
@pytest.mark.django_db(transaction=True)
def test_a_parked_row_is_retried_in_a_browser(live_server, admin_user, browser):  # noqa: F811
    owe("17", error="RuntimeError: unwell")
    owe("18", LATER)

    def find(selector):
        return browser.find_element("css selector", selector)

    browser.get(live_server.url + LEDGER)
    find("#id_username").send_keys("admin")
    find("#id_password").send_keys("password\ue007")
    browser.find_element("link text", "parked").click()
    assert "state=parked" in browser.current_url
    assert [row.text for row in browser.find_elements("css selector", "th.field-source_pk")] == [
        "17"
    ]
    find("input.action-select").click()
    find("select[name=action] option[value=retry]").click()
    find("button[name=index]").click()
    assert find(".messagelist .success").text == "1 of 1 rows are due again."
    assert not Ledger.objects.filter(run_at=None).exists()


@needs_browser
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_chart_has_the_colours_of_the_theme(live_server, client, admin_user, browser, theme):  # noqa: F811
    Minute.objects.create(sidecar=KEY, minute=timezone.now(), embedded=30, failed=10, waiting=5)
    SidecarState.objects.get_or_create(key=KEY)
    client.force_login(admin_user)
    browser.get(live_server.url + "/admin/login/")
    browser.add_cookie({"name": "sessionid", "value": client.cookies["sessionid"].value})
    browser.get(f"{live_server.url}{BOOKS}change/")
    browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    fills = browser.execute_script(
        "return [...[...document.querySelectorAll('g.bar')].at(-1).querySelectorAll('rect')]"
        ".map(bar => [getComputedStyle(bar).fill, bar.getBoundingClientRect().height > 0])"
    )
    variables = browser.execute_script(
        "const root = getComputedStyle(document.documentElement);"
        "return ['--secondary', '--error-fg'].map(name => root.getPropertyValue(name))"
    )
    assert fills == [[rgb(colour), True] for colour in variables]


def rgb(colour):
    """``#417690``, as a browser computes it."""
    return f"rgb{tuple(bytes.fromhex(colour.strip('# ')))}"
