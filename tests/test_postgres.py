"""The embedded PostgreSQL of the example project, against real servers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from example_project.databases import database_settings
from example_project.postgres import VERSIONS, Cluster, PostgresError
from tests.embedded import VERSION, finish, manage, room_for_clusters

OTHER_VERSION = next(version for version in VERSIONS if version != VERSION)


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    with room_for_clusters() as folder:
        yield folder


@pytest.fixture(scope="module")
def ours(room: Path) -> Iterator[Cluster]:
    cluster = Cluster(room / "ours", VERSION, fsync=False)
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(ours: Cluster) -> Cluster:
    """A running server, shared by the tests of this module."""
    ours.start()
    return ours


def query(cluster: Cluster, sql: str, database: str = "postgres") -> Any:
    with psycopg.connect(cluster.url(database), autocommit=True) as connection:
        cursor = connection.execute(sql)
        row = cursor.fetchone() if cursor.description else None
    return row and row[0]


def pid(cluster: Cluster) -> int:
    status = cluster.status()
    assert status is not None
    assert status.running
    return status.pid


def kill(cluster: Cluster) -> None:
    """Kill the server as a crash would, leaving its pid file behind."""
    os.kill(pid(cluster), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while cluster._answers():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_start_one_server_that_survives_them_until_it_is_stopped(room: Path) -> None:
    cluster = Cluster(room / "two", VERSION)
    leftover = room / ".two.new"
    leftover.mkdir()
    (leftover / "PG_VERSION").write_text("an initdb that was cut short")
    try:
        for code, output in map(finish, [manage(cluster.data, "postgres", "start") for _ in "12"]):
            assert code == 0, output
            assert f"process {pid(cluster)}" in output
            assert str(cluster.data) in output
            assert "manage.py postgres stop" in output
        first = pid(cluster)
        assert query(cluster, "SELECT current_database()", "embedsync") == "embedsync"
        assert query(cluster, "SHOW max_prepared_transactions") == "10"
        assert query(cluster, "SHOW server_version").startswith(f"{VERSION}.")

        cluster.start()
        assert pid(cluster) == first
        code, output = finish(manage(cluster.data, "postgres", "status"))
        assert code == 0, output
        assert f"process {first}" in output
    finally:
        code, output = finish(manage(cluster.data, "postgres", "stop"))
    assert code == 0, output
    assert cluster.status() is None
    assert not leftover.exists()

    code, output = finish(manage(cluster.data, "postgres", "status"))
    assert code == 1
    assert "not running" in output
    code, output = finish(manage(cluster.data, "postgres", "stop"))
    assert code == 0, output


def test_a_killed_server_is_seen_as_such_and_started_again(cluster: Cluster) -> None:
    query(cluster, "CREATE TABLE kept AS SELECT 7 AS number")
    query(cluster, "CHECKPOINT")
    killed = pid(cluster)
    kill(cluster)

    status = cluster.status()
    assert status is not None
    assert (status.pid, status.running) == (killed, False)
    code, output = finish(manage(cluster.data, "postgres", "status"))
    assert code == 1, output
    cluster.start()
    assert pid(cluster) != killed
    assert query(cluster, "SELECT number FROM kept") == 7


def test_a_process_that_got_the_pid_of_a_killed_server_is_left_alone(cluster: Cluster) -> None:
    kill(cluster)
    # Owned by the server's user: PostgreSQL would take another user's process for dead.
    owner = cluster.data.stat().st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "100"], user=owner) as stranger:
        try:
            pid_file = cluster.data / "postmaster.pid"
            lines = pid_file.read_text().splitlines()
            pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")

            cluster.stop()
            assert stranger.poll() is None
            cluster.start()
            assert pid(cluster) != stranger.pid
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_an_empty_pid_file_is_no_hindrance(cluster: Cluster) -> None:
    cluster.stop()
    (cluster.data / "postmaster.pid").touch()
    cluster.start()
    assert pid(cluster)


def test_a_server_that_does_not_answer_is_reported_and_can_be_stopped(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("example_project.postgres._STOP_SECONDS", 2)
    monkeypatch.setattr("example_project.postgres._START_SECONDS", 1)
    monkeypatch.setattr("example_project.postgres._ANSWER_SECONDS", 2)
    hung = pid(cluster)
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(PostgresError, match=r"does not answer.*postgres stop"):
        cluster.start()
    cluster.stop()
    monkeypatch.undo()
    cluster.start()
    assert pid(cluster) != hung


def test_a_failed_start_shows_what_postgresql_said(cluster: Cluster) -> None:
    cluster.stop()
    settings = cluster.data / "postgresql.conf"
    before = settings.read_text()
    settings.write_text(before + "\nno_such_setting = 1\n")
    try:
        with pytest.raises(PostgresError, match="no_such_setting"):
            cluster.start()
    finally:
        settings.write_text(before)


def test_a_space_and_a_quote_in_the_path_do_no_harm(room: Path) -> None:
    cluster = Cluster(room / "the film's data", VERSION, fsync=False)
    try:
        cluster.start()
        assert query(cluster, "SHOW data_directory") == str(cluster.data)
        cluster.stop()
        cluster.start()
        assert pid(cluster)
    finally:
        cluster.stop()


def test_a_long_path_gets_a_private_folder_for_its_socket_while_it_runs(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(room / ("a" * 60) / ("b" * 60), VERSION, fsync=False)
    monkeypatch.setenv("EMBEDDED_POSTGRES_DATA", str(cluster.data))
    assert "not-running" in database_settings(None)["HOST"]
    try:
        cluster.start()
        first = Path(database_settings(None)["HOST"])
        assert first.stat().st_mode & 0o777 == 0o700
        assert query(cluster, "SHOW data_directory") == str(cluster.data)
        kill(cluster)
        cluster.start()
        second = Path(database_settings(None)["HOST"])
        assert second != first
        assert not first.exists()
        assert query(cluster, "SELECT 1") == 1
    finally:
        cluster.stop()
    assert not second.exists()

    with (cluster.data / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    with pytest.raises(PostgresError, match="no_such_setting"):
        cluster.start()
    third = (cluster.data / "embedded.conf").read_text().split('"')[1]
    assert third.startswith("/tmp/embedded-postgres-")
    assert not Path(third).exists()


def test_a_folder_of_another_version_is_refused_with_the_cure(cluster: Cluster) -> None:
    with pytest.raises(PostgresError, match=f"EMBEDDED_POSTGRES_VERSION={VERSION}"):
        Cluster(cluster.data, OTHER_VERSION).start()
    assert pid(cluster)
