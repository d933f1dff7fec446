"""Django's admin: how each sidecar is, its chart, and who works; on whichever database."""

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib import admin
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from embedsync import chart
from embedsync.admin import in_words
from embedsync.models import Minute, SidecarState, WorkerState
from tests.books import KEY, BookEmbedding, renamed
from tests.library.models import Book
from tests.migration_project import Project
from tests.owed import BOOKS, LEDGER, PARCEL_KEY, SIDECARS, WORKERS, listed, owe_all_kinds
from tests.shop import DECLARED, insert

pytestmark = pytest.mark.django_db


@pytest.fixture
def now(monkeypatch):
    """A moment that does not pass."""
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now)
    return now


class TestSidecars:
    def test_each_is_told_of(self, admin_client):
        owe_all_kinds()
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

    def test_numbers_of_other_countries_do_not_bend_the_chart(self, admin_client, settings, now):
        settings.LANGUAGE_CODE = "de"
        settings.USE_THOUSAND_SEPARATOR = True
        Minute.objects.create(sidecar=KEY, minute=now, embedded=12345, waiting=54321)
        page = admin_client.get(BOOKS, follow=True).content.decode()
        assert 'x="1425"' in page
        assert " 1432,0" in page
        assert "12.345" in page

    def test_a_page_costs_few_queries(self, admin_client, django_assert_max_num_queries):
        count = SidecarState.objects.count()
        assert count > 5
        with django_assert_max_num_queries(13 + 4 * count):
            assert len(listed(admin_client.get(SIDECARS))) == count
        with django_assert_max_num_queries(19):
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
    def test_the_hours_can_be_chosen(self, admin_client, now, asked, hours, bars):
        for minutes in (0, 59, 61, 60 * 48 - 31):
            Minute.objects.create(
                sidecar=KEY, minute=now - timedelta(minutes=minutes), unchanged=1, waiting=minutes
            )
        Minute.objects.create(sidecar=PARCEL_KEY, minute=now, embedded=100)
        page = admin_client.get(f"{BOOKS}change/", {"hours": asked})
        assert page.context["chart"].hours == hours
        assert page.content.decode().count('class="bar"') == bars
        assert page.context["chart"].points[-1].done == 1
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
        assert "200 1 of 1 row due again." in said
        assert "200 1 of 1 row discarded." in said
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
