"""docs/deployment.md: what can be tried of it without a cluster."""

import re

import pytest
import yaml
from django.db import connection

from embedsync import metrics
from embedsync.models import Inbox, Ledger
from embedsync.queue import Queue
from example_project.postgres import PROJECT
from tests.books import KEY, execute, make_due
from tests.library.models import Book

PAGE = (PROJECT / "docs" / "deployment.md").read_text()


def blocks(language):
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def document(key, value=None):
    """The YAML document that has this key, with this value where one is given."""
    found = [yaml.safe_load(block) for block in blocks("yaml")]
    [one] = [one for one in found if key in one and value in (None, one[key])]
    return one


def due():
    """What KEDA is told."""
    [trigger] = document("kind", "ScaledObject")["spec"]["triggers"]
    with connection.cursor() as cursor:
        cursor.execute(trigger["metadata"]["query"])
        [[count]] = cursor.fetchall()
    return count


@pytest.mark.django_db(transaction=True)
def test_keda_counts_what_is_due_and_no_parked_row(drain):
    drain()
    assert due() == 0
    Book.objects.bulk_create([Book(title="one"), Book(title="two")])
    assert due() == 2
    Inbox.objects.create(sidecar=KEY, kind="hop", hop="author", source_pk="1")
    assert due() == 2
    queue = Queue("default", "a worker")
    [lease] = queue.fold([KEY], 10)[1]
    assert due() == 0
    make_due()  # the lease has run out
    assert due() == 2
    queue.hand_back(lease, {lease.pks[0]: None, lease.pks[1]: 3600.0}, "parked, and later")
    assert sorted(Ledger.objects.values_list("run_at", flat=True), key=bool)[0] is None
    assert due() == 0
    execute("UPDATE embedsync_ledger SET run_at = now() WHERE run_at IS NOT NULL")
    assert due() == 1


def test_alerts_ask_for_metrics_that_there_are():
    [group] = document("groups")["groups"]
    asked = {name for rule in group["rules"] for name in re.findall(r"embedsync_\w+", rule["expr"])}
    assert asked
    assert asked <= {*metrics.OF_DATABASES, *metrics.OF_SIDECARS}


def test_all_metrics_are_listed():
    listed = set(re.findall(r"embedsync_\w+", PAGE))
    listed |= {f"embedsync{name}" for name in re.findall(r"`(_\w+)`", PAGE)}
    counters = {f"embedsync_{name}_total" for name in ("embedded_rows", "failures", "parked")}
    assert {*metrics.OF_DATABASES, *metrics.OF_SIDECARS, *counters} <= listed


def test_the_workers_of_all_of_them_have_the_same_time_to_end():
    pod = document("kind", "Deployment")["spec"]["template"]["spec"]
    assert document("services")["services"]["embed_worker"]["stop_grace_period"] == "60s"
    assert pod["terminationGracePeriodSeconds"] == 60
    assert "TimeoutStopSec=60\n" in blocks("ini")[0]
