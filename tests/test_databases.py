"""DATABASES of the example project, from DATABASE_URL or the embedded PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from example_project.databases import database_settings


def test_without_a_url_django_is_pointed_at_the_embedded_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDED_POSTGRES_DATA", "/srv/no films")
    expected = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "embedsync",
        "USER": "postgres",
        "HOST": "/srv/no films",
        "PORT": "5432",
    }
    assert database_settings(None) == database_settings("") == expected

    monkeypatch.setenv("EMBEDDED_POSTGRES_DATA", str(tmp_path))
    started = ["123", str(tmp_path), "1712346200", "6543", "/some/socket"]
    (tmp_path / "postmaster.pid").write_text("\n".join(started))
    assert database_settings(None) == expected | {"HOST": "/some/socket", "PORT": "6543"}
    (tmp_path / "postmaster.pid").write_text("\n".join(started[:3]))
    assert database_settings(None)["HOST"] != "/some/socket"


@pytest.mark.parametrize("folder", ["/srv/" + "a" * 100, "/srv/one,two"])
def test_a_folder_that_cannot_hold_a_socket_gives_a_host_that_says_so(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDED_POSTGRES_DATA", folder)
    assert database_settings(None)["HOST"] == "/embedded-postgres-is-not-running"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgres://ann:p%40ss%2Fw%C3%B6rd@db.example.org:6543/films?sslmode=require"
            "&connect_timeout=3",
            {
                "USER": "ann",
                "PASSWORD": "p@ss/wörd",
                "HOST": "db.example.org",
                "PORT": "6543",
                "NAME": "films",
                "OPTIONS": {"sslmode": "require", "connect_timeout": "3"},
            },
        ),
        (
            "postgresql:///films?host=/run/my%20sockets",
            {"HOST": "/run/my sockets", "NAME": "films", "OPTIONS": {}},
        ),
        ("postgresql://[::1]/films", {"HOST": "::1", "NAME": "films", "OPTIONS": {}}),
        ("postgresql://?service=films", {"OPTIONS": {"service": "films"}}),
    ],
)
def test_a_url_becomes_django_settings(url: str, expected: dict[str, Any]) -> None:
    assert database_settings(url) == {"ENGINE": "django.db.backends.postgresql"} | expected


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://ann:secret@host/films", "has to begin with postgresql://"),
        ("postgresql://ann:%zzsecret@host/films", "cannot be read"),
        ("postgresql://ann:secret@host:port/films", "port that is no number"),
        ("postgresql://ann:secret@host/films?colour=secret", "cannot be read"),
        ("postgresql://ann:secret@host", "names no database"),
    ],
)
def test_a_wrong_url_is_refused_without_telling_its_password(url: str, complaint: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"DATABASE_URL.*{complaint}") as caught:
        database_settings(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
