"""``manage.py embed_schedule``, and what a real cluster of django-q2 does with it."""

import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.management import CommandError, call_command

from tests.migration_project import ROOT, vectors_of
from tests.shop import DECLARED, insert
from tests.workers import until

ZONE = "America/New_York"
# The guard calls the scheduler when 30 s of cycles have passed: with this one, in the first.
CLUSTER = {
    "name": "embedsync",
    "orm": "default",
    "workers": 1,
    "timeout": 90,
    "retry": 100,
    "poll": 0.1,
    "guard_cycle": 30,
}
SCHEDULES = (
    "SELECT name, func, kwargs, schedule_type, repeats, next_run FROM django_q_schedule ORDER BY id"
)


def more(cluster=CLUSTER, zone=ZONE):
    return f"Q_CLUSTER = {cluster!r}\nTIME_ZONE = {zone!r}\n"


@pytest.fixture
def code(project):
    """A project with django-q2 and one source, migrated."""
    code = project.code(DECLARED.models, apps=["django_q"], more=more())
    code.upgrade()
    return code


@pytest.fixture
def qcluster(project):
    """Start a cluster; it is stopped at the end, with its workers."""
    started = []

    def start():
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": f"{project.folder}{os.pathsep}{ROOT}",
        }
        with (project.folder / "qcluster.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "django", "qcluster"],
                cwd=project.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    print((project.folder / "qcluster.log").read_text())  # where a test fails, pytest shows it
    for process in started:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_cluster_sweeps_and_repairs(project, code, qcluster):
    insert(project, "first", "second", "third")
    code.drain()
    project.sql("SET session_replication_role = replica")
    project.sql("UPDATE shop_movie SET title = 'changed' WHERE title = 'second'")
    project.sql("RESET session_replication_role")
    texts = "SELECT id, title FROM shop_movie"
    assert project.vectors(DECLARED.sidecar) != vectors_of(dict(project.sql(texts)))

    code.run("embed_schedule")
    project.sql("UPDATE django_q_schedule SET next_run = now() - interval '1 minute'")
    qcluster()
    until(lambda: project.sql("SELECT id FROM django_q_task WHERE success"), seconds=60)
    ((key,),) = project.sql("SELECT id::text FROM shop_movie WHERE title = 'changed'")
    assert project.events(DECLARED.key) == [("row", key)]
    assert project.sql("SELECT next_run > now() FROM django_q_schedule") == [(True,)]
    code.drain()
    assert project.vectors(DECLARED.sidecar) == vectors_of(dict(project.sql(texts)))
    output = code.run("embed_sweep", "--json")
    assert json.loads(output.splitlines()[-1])["drift"] == 0


def test_a_cluster_embeds_once_a_minute(project, code, qcluster):
    code.drain()
    insert(project, "first", "second", "third")
    output = code.run("embed_schedule", "--work")
    assert "embedsync work: every minute, for at most 45 s" in output
    work = project.sql(SCHEDULES)[1]
    assert work[:5] == (
        "embedsync work",
        "embedsync.tasks.process_pending",
        "{'max_seconds': 45.0, 'database': 'default'}",
        "I",
        -1,
    )
    code.run("embed_schedule", "--work")  # changes nothing
    code.run("embed_schedule")  # takes nothing away
    assert project.sql(SCHEDULES)[1] == work
    qcluster()
    until(lambda: project.sql("SELECT id FROM django_q_task WHERE success"), seconds=60)
    texts = "SELECT id, title FROM shop_movie"
    assert project.vectors(DECLARED.sidecar) == vectors_of(dict(project.sql(texts)))
    assert code.run("embed_schedule", "--remove").count("removed") == 2
    assert project.sql(SCHEDULES) == []


def test_a_schedule_is_made_once_and_changed(project, code):
    def scheduled():
        ((*rest, next_run),) = project.sql(SCHEDULES)
        return rest, next_run

    output = code.run("embed_schedule")
    assert "embedsync sweep: daily at 03:00, for at most 72 s" in output
    made = scheduled()
    assert made[0] == [
        "embedsync sweep",
        "embedsync.tasks.sweep",
        "{'repair': True, 'max_seconds': 72.0, 'database': 'default'}",
        "D",
        -1,
    ]
    local = made[1].astimezone(ZoneInfo(ZONE))
    assert (local.hour, local.minute, local.second) == (3, 0, 0)
    now = datetime.now(ZoneInfo(ZONE))
    assert now - timedelta(seconds=1) < local <= now + timedelta(days=1, hours=1)

    # Nothing is put off by a deployment that runs it again.
    project.sql("UPDATE django_q_schedule SET next_run = next_run - interval '7 days'")
    earlier = scheduled()
    code.run("embed_schedule", "--sweep-at", "03:00")
    assert abs(scheduled()[1] - earlier[1]) == timedelta(0)

    project.sql(
        "INSERT INTO django_q_schedule (name, func, schedule_type, repeats, next_run)"
        " VALUES ('embedsync sweep', 'embedsync.tasks.sweep', 'D', -1, now()),"
        " ('mine', 'print', 'D', -1, now())"
    )
    code.run("embed_schedule", "--sweep-at", "14:45", "--max-seconds", "30")
    ours, mine = project.sql(SCHEDULES)
    local = ours[5].astimezone(ZoneInfo(ZONE))
    assert (local.hour, local.minute) == (14, 45)
    assert "'max_seconds': 30.0" in ours[2]
    assert mine[0] == "mine"

    assert "removed" in code.run("embed_schedule", "--remove")
    assert "is not scheduled" in code.run("embed_schedule", "--remove")
    assert [name for name, *_ in project.sql(SCHEDULES)] == ["mine"]


def test_a_cluster_that_would_not_wait_is_named(project, code):
    output = code.fail("embed_schedule", "--max-seconds", "90")
    assert "Q_CLUSTER['timeout'] is 90" in output
    assert "Traceback" not in output
    assert project.sql(SCHEDULES) == []


def test_the_tables_of_django_q2_are_missing(project):
    code = project.code(DECLARED.models, apps=["django_q"], more=more())
    output = code.fail("embed_schedule")
    assert "tables of django-q2 are missing: run migrate" in output
    assert output.strip().endswith('relation "django_q_schedule" does not exist)')
    assert "Traceback" not in output


def test_without_time_zones(project):
    code = project.code(
        DECLARED.models, apps=["django_q"], more=f"{more(zone='UTC')}USE_TZ = False\n"
    )
    code.upgrade()
    assert "daily at 23:59" in code.run("embed_schedule", "--sweep-at", "23:59")


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(CommandError, match=r'add "django_q" to INSTALLED_APPS and run migrate'):
        call_command("embed_schedule")
    monkeypatch.setitem(sys.modules, "django_q", None)
    with pytest.raises(CommandError, match=r"pip install 'django-q2>=1.8', add"):
        call_command("embed_schedule")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--sweep-at", "25:00"], "no time of day like 03:00"),
        (["--database", "nope"], "no database 'nope'"),
    ],
)
def test_mistakes_are_named(arguments, complaint):
    with pytest.raises(CommandError, match=complaint):
        call_command("embed_schedule", *arguments)
