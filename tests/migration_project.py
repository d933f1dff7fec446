"""Throw-away projects: an app whose ``models.py`` is given as text, and a database of its own."""

import importlib
import io
import json
import os
import secrets
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from urllib.parse import urlencode

import psycopg
from pgvector import HalfVector
from psycopg import sql

from embedsync.embedders.hashing import HashingEmbedder

ROOT = Path(__file__).resolve().parent.parent
DIMENSIONS = 8

SETTINGS = """
SECRET_KEY = "throw-away"
INSTALLED_APPS = {apps!r}
DATABASES = {{"default": {database!r}}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
SITE_ID = 1
EMBEDSYNC_EMBEDDERS = {{
    "default": {{
        "BACKEND": "embedsync.embedders.hashing.HashingEmbedder",
        "DIMENSIONS": {dimensions},
    }}
}}
LOGGING = {{
    "version": 1,
    "handlers": {{"stderr": {{"class": "logging.StreamHandler"}}}},
    "loggers": {{"embedsync": {{"handlers": ["stderr"], "level": "INFO"}}}},
}}
"""

MODELS = """
from django.db import models
from django.db.models import Q
from embedsync.models import EmbeddedModel, Embedding, EmbeddingModel, EmbeddingSource

"""


def vectors_of(texts):
    """What the vectors of ``texts``, by key, have to be."""
    vectors = HashingEmbedder(model="", dimensions=DIMENSIONS).embed_documents(list(texts.values()))
    return {pk: HalfVector(vector).to_list() for pk, vector in zip(texts, vectors, strict=True)}


class CommandFailedError(Exception):
    """A management command ended with an error; its output."""


# Processes are forked from one that has imported Django and no project: starting Python and
# importing Django takes ten times as long as most commands do.
processes = get_context("forkserver")
processes.set_forkserver_preload(
    [
        "django.core.management.commands.makemigrations",
        "django.core.management.commands.migrate",
        "django.core.management.commands.sqlmigrate",
        "django.core.management.commands.squashmigrations",
        "django.db.backends.postgresql.base",
        "pgvector.django",
        "pytest",  # the main module, which multiprocessing imports
        __name__,
    ]
)


@dataclass
class Code:
    """The project under one text of ``models.py``: a process that runs management commands."""

    process: BaseProcess
    channel: Connection

    def run(self, *argv, answers=()):
        """``manage.py *argv``; its output. ``answers`` are what is typed at its questions."""
        self.channel.send((argv, "".join(f"{answer}\n" for answer in answers)))
        status, output = self.channel.recv()
        if status:
            raise CommandFailedError(output)
        return output

    def upgrade(self, *answers):
        """What a developer does after a change of models: write the migration, and run it."""
        self.run("makemigrations", answers=answers)
        self.run("migrate")
        self.is_clean()

    def is_clean(self):
        self.run("makemigrations", "--check", "--dry-run")

    def fail(self, *argv):
        """``manage.py *argv``, which has to fail; its output."""
        try:
            output = self.run(*argv)
        except CommandFailedError as error:
            return str(error)
        raise AssertionError(f"{argv} ended well: {output}")

    def drain(self):
        self.run("embed_worker", "--drain")

    def end(self):
        self.channel.close()
        self.process.join(20)
        self.process.kill()
        self.process.join()


class Project:
    """A project with one app, ``shop``, in ``folder``, on the server that ``server`` names.

    ``server`` is an entry of Django's ``DATABASES``; the database is made here and dropped by
    ``remove()``.
    """

    def __init__(self, folder, server):
        self.folder = folder
        self.server = server
        self.name = f"throwaway_{secrets.token_hex(6)}"
        self.codes = []
        self.migrations = folder / "shop" / "migrations"
        self.migrations.mkdir(parents=True)
        (folder / "shop" / "__init__.py").touch()
        (self.migrations / "__init__.py").touch()
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))
        self.connection = self.connect()

    def connect(self, name=None, **more):
        """A connection in autocommit, to the project's database if not told another one."""
        keys = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
        values = {key: self.server[name] for key, name in keys.items() if self.server[name]}
        values |= {"dbname": name or self.name, **self.server["OPTIONS"], **more}
        return psycopg.connect(**values, autocommit=True, prepare_threshold=None)

    def remove(self):
        for code in self.codes:
            code.end()
        self.connection.close()
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        with self.connect("postgres") as connection:
            connection.execute(drop.format(sql.Identifier(self.name)))

    def database(self, **more):
        """Django's settings of the project's database."""
        keys = ("ENGINE", "HOST", "PORT", "USER", "PASSWORD", "OPTIONS")
        return {key: self.server[key] for key in keys} | {"NAME": self.name} | more

    def code(self, models, *, apps=(), dimensions=DIMENSIONS, database=None, more=""):
        """The project with this ``models.py``; ``more`` is added to its settings."""
        settings = SETTINGS.format(
            apps=[*apps, "embedsync", "shop"],
            database=database or self.database(),
            dimensions=dimensions,
        )
        (self.folder / "settings.py").write_text(settings + more)
        (self.folder / "shop" / "models.py").write_text(MODELS + models)
        ours, theirs = processes.Pipe()
        process = processes.Process(target=serve, args=[theirs, self.folder], daemon=True)
        process.start()
        theirs.close()
        code = Code(process, ours)
        self.codes.append(code)
        code.run("version")  # models.py has been read when this returns
        return code

    def sql(self, query, *params, **named):
        """The rows that a statement returns, if it does. A % in it is doubled."""
        cursor = self.connection.execute(query, named or params)
        return cursor.fetchall() if cursor.description else None

    def migration(self, start):
        """The path of the app's migration whose name starts like this."""
        (path,) = self.migrations.glob(f"{start}*.py")
        return path

    def url(self):
        """``DATABASE_URL`` of the project's database."""
        query = {key.lower(): self.server[key] for key in ("HOST", "PORT", "USER", "PASSWORD")}
        query = {key: value for key, value in query.items() if value} | self.server["OPTIONS"]
        return f"postgresql:///{self.name}?{urlencode(query)}"

    def tables(self):
        """The app's tables."""
        rows = self.sql("SELECT relname FROM pg_class WHERE relkind = 'r' ORDER BY 1")
        return [name for (name,) in rows if name.startswith("shop_")]

    def events(self, key):
        """The inbox's events of one sidecar, as (kind, key) in order. They stay there."""
        return self.sql(
            "SELECT kind, source_pk FROM embedsync_inbox WHERE sidecar = %s ORDER BY seq", key
        )

    def triggers(self):
        """(source table, sidecar's key, number of triggers) for all there are."""
        return self.sql(
            "SELECT c.relname, split_part(encode(t.tgargs, 'escape'), '\\000', 1), count(*)::int"
            " FROM pg_trigger t JOIN pg_proc p ON p.oid = tgfoid JOIN pg_class c ON c.oid = tgrelid"
            " WHERE p.proname LIKE 'embedsync_capture_%%' GROUP BY 1, 2 ORDER BY 1, 2"
        )

    def objects(self):
        """Names of the functions, relations and types that embedsync has in the database."""
        return self.sql(
            "SELECT proname::text FROM pg_proc WHERE proname LIKE '%%embedsync%%'"
            " UNION SELECT relname FROM pg_class WHERE relname LIKE '%%embedsync%%'"
            " UNION SELECT typname FROM pg_type WHERE typname LIKE '%%embedsync%%' ORDER BY 1"
        )

    def known(self):
        """The sidecars that the queue's tables know."""
        rows = self.sql(
            "SELECT key FROM embedsync_sidecar UNION SELECT sidecar FROM embedsync_ledger"
            " UNION SELECT sidecar FROM embedsync_inbox ORDER BY 1"
        )
        return [key for (key,) in rows]

    def embedded_at(self, sidecar):
        """When each row was embedded."""
        return dict(self.sql(f'SELECT source_id, embedded_at FROM "{sidecar}"'))

    def vectors(self, sidecar):
        """The vectors of a sidecar's table, by key."""
        rows = self.sql(f'SELECT source_id, vector::text FROM "{sidecar}"')
        return {pk: HalfVector(json.loads(vector)).to_list() for pk, vector in rows}


def serve(channel, folder):
    """Run the commands that come through ``channel``, in a process of its own."""
    warnings.simplefilter("error")
    os.chdir(folder)
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    os.environ["PATH"] = ""  # where makemigrations finds a formatter, it uses it
    sys.path[:0] = [str(folder), str(ROOT)]
    sys.dont_write_bytecode = True  # two texts of one second and length would share theirs
    while True:
        try:
            request = channel.recv()
        except EOFError:
            return
        channel.send(execute(*request))


def execute(argv, typed):
    """Run one management command in this process; its exit status and output."""
    from django.core.management import execute_from_command_line

    importlib.invalidate_caches()  # a command before this one may have written a migration
    output, sys.stdin = io.StringIO(), io.StringIO(typed)
    status = 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            execute_from_command_line(["manage.py", *argv])
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            status = 1
            traceback.print_exc()
    return status, output.getvalue()
