"""Django's DATABASES from DATABASE_URL, or from the embedded PostgreSQL without one."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from example_project.postgres import USER, Cluster, PostgresError

NAME = "embedsync"

_ENGINE = "django.db.backends.postgresql"
_FORM = "postgresql://user:password@host:port/name?sslmode=require"
_DJANGO_KEYS = {
    "dbname": "NAME",
    "user": "USER",
    "password": "PASSWORD",
    "host": "HOST",
    "port": "PORT",
}


def database_settings(url: str | None) -> dict[str, Any]:
    """The settings of one database: the one at ``url``, or else the embedded one.

    Reads a file at most: whether a server listens shows when Django connects.
    """
    return _from_url(url) if url else _embedded()


def _from_url(url: str) -> dict[str, Any]:
    if not url.startswith(("postgresql://", "postgres://")):
        raise ImproperlyConfigured(f"DATABASE_URL has to begin with postgresql://, as in {_FORM}")
    try:
        values = conninfo_to_dict(url)
    except ProgrammingError:
        # The cause may quote the password.
        raise ImproperlyConfigured(
            f"DATABASE_URL cannot be read. It has to look like {_FORM}, with the special "
            "characters of user and password percent-encoded and only libpq's options behind '?'."
        ) from None
    port = str(values.get("port", ""))
    if port and not all(part.isdecimal() for part in port.split(",") if part):
        raise ImproperlyConfigured(f"DATABASE_URL has a port that is no number, unlike {_FORM}")
    if not values.get("dbname") and "service" not in values:
        raise ImproperlyConfigured(f"DATABASE_URL names no database. Add its name: {_FORM}")
    settings: dict[str, Any] = {"ENGINE": _ENGINE, "OPTIONS": {}}
    for key, value in values.items():
        if key in _DJANGO_KEYS:
            settings[_DJANGO_KEYS[key]] = value
        else:
            settings["OPTIONS"][key] = value
    return settings


def _embedded() -> dict[str, Any]:
    try:
        cluster = Cluster.from_environment()
    except PostgresError as error:
        raise ImproperlyConfigured(str(error)) from error
    host, port = cluster.socket() or cluster.expected_socket()
    return {"ENGINE": _ENGINE, "NAME": NAME, "USER": USER, "HOST": host, "PORT": port}
