"""Removing embedsync from a project, step by step as docs/operations.md has it."""

import shutil

from tests import migration_project
from tests.shop import DECLARED, PLAIN, insert, movie

BOTH = movie(
    'embedding = Embedding("title", default=True)\n    better = Embedding("title", "plot")'
)
APPS = ["django.contrib.contenttypes"]


def lived_in(project):
    """A project that was declared from the beginning."""
    code = project.code(BOTH, apps=APPS)
    code.upgrade()
    insert(project, "Alien", "Brazil")
    code.drain()
    return code


def test_other_apps_are_not_unapplied_with_embedsync(project):
    code = lived_in(project)
    tables = project.tables()
    said = code.fail("migrate", "embedsync", "zero")
    assert "Nothing was done: shop.0001_initial would be unapplied, too" in said
    assert project.tables() == tables
    assert project.sql("SELECT count(*) FROM shop_movie") == [(2,)]
    code.run("embed_status")
    # Who says so drops them.
    code.run("migrate", "shop", "zero")
    code.run("migrate", "embedsync", "zero")
    assert project.objects() == []


def test_removing(project, monkeypatch):
    lived_in(project)
    for models in (DECLARED.models, PLAIN.models):
        code = project.code(models, apps=APPS)
        code.upgrade()
    assert project.triggers() == []
    code.run("squashmigrations", "shop", "0003", "--no-input")
    squashed = project.migration("0001_squashed")
    text = squashed.read_text().replace("('embedsync', '0001_initial'),", "")
    assert "embedsync" not in text.partition("dependencies")[2]
    squashed.write_text(text)
    code = project.code(PLAIN.models, apps=APPS)
    code.run("migrate")

    for path in project.migrations.glob("000*.py"):
        if path != squashed:
            path.unlink()
    shutil.rmtree(project.migrations / "__pycache__", ignore_errors=True)
    squashed.write_text(text.replace("    replaces = ", "    unused = "))
    code = project.code(PLAIN.models, apps=APPS)
    code.run("migrate", "shop", "--prune")
    code.run("migrate", "embedsync", "zero")
    assert project.objects() == []

    monkeypatch.setattr(migration_project, "MODELS", "from django.db import models\n")
    code = project.code(PLAIN.models, more=f"INSTALLED_APPS = {[*APPS, 'shop']}\n")
    code.run("remove_stale_contenttypes", "--include-stale-apps", "--no-input")
    code.run("migrate")
    code.is_clean()
    assert project.sql("SELECT app FROM django_migrations WHERE app = 'embedsync'") == []
    rows = "SELECT model FROM django_content_type WHERE app_label = 'embedsync'"
    assert project.sql(rows) == []
    assert project.tables() == ["shop_movie"]
    assert project.sql("SELECT title FROM shop_movie ORDER BY 1") == [("Alien",), ("Brazil",)]
