"""The first migrate where something is missing: it says what, and the cure, and writes nothing."""

import re
import secrets

import pytest
from django.db import connection

from tests.migration_project import ROOT, Project

MODELS = """
class Movie(models.Model):
    title = models.TextField()
    embedding = Embedding("title")
"""


@pytest.fixture
def project(postgres, tmp_path):
    project = Project(tmp_path, connection.settings_dict)
    yield project
    project.remove()


@pytest.fixture
def owner(postgres, tmp_path):
    """A project whose database belongs to a role of few rights, and Django's settings for it."""
    project = Project(tmp_path, connection.settings_dict)
    role, password = f"owner_of_{project.name}", secrets.token_hex(16)
    project.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    project.sql(f"ALTER DATABASE {project.name} OWNER TO {role}")
    yield project, project.database(USER=role, PASSWORD=password)
    project.remove()
    with project.connect("postgres") as server:
        server.execute(f"DROP ROLE {role}")


def tables(project):
    return project.sql("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")


def test_a_role_that_may_not_create_the_extension(owner):
    project, database = owner
    trusted = project.sql(
        "SELECT bool_or(trusted) FROM pg_available_extension_versions WHERE name = 'vector'"
    )
    code = project.code(MODELS, database=database)
    code.run("makemigrations")
    if trusted == [(False,)]:
        output = code.fail("migrate")
        assert (
            'CREATE EXTENSION vector failed: permission denied to create extension "vector"'
            in output
        )
        assert f'Ask a superuser to run it in database "{project.name}"' in output
        assert {name for (name,) in tables(project) if name.startswith(("embedsync", "shop"))} == (
            set()
        )
        assert project.sql("SELECT app FROM django_migrations") == []
        project.sql("CREATE EXTENSION vector")
    code.run("migrate")
    project.sql("INSERT INTO shop_movie (title) VALUES ('Alien')")
    assert project.events("shop.movieembedding") == [("row", "1")]
    code.drain()
    assert len(project.vectors("shop_movieembedding")) == 1


def test_another_database_than_postgresql(project, tmp_path):
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db.sqlite3")}
    declared = project.code(MODELS, database=database)
    for command in ("makemigrations", "migrate"):
        assert "embedsync needs PostgreSQL" in declared.fail(command)
    # Nothing is declared yet, so that no system check speaks first.
    installed = project.code("", database=database)
    output = installed.fail("migrate")
    assert "ImproperlyConfigured: embedsync needs PostgreSQL" in output
    assert "'default' is SQLite" in output


def test_nobody_is_told_to_install_what_has_this_name_on_pypi():
    paths = [*ROOT.glob("embedsync/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    told = [
        path.name for path in paths if re.search(r'pip install .*"embedsync\[', path.read_text())
    ]
    assert len(paths) > 50
    assert told == []
