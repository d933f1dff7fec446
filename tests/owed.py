"""Rows of the ledger, and how Django's admin shows them."""

import re

from tests.books import KEY, execute

PARCEL_KEY = "library.parcelembedding"
LEDGER = "/admin/embedsync/ledgerrow/"
SIDECARS = "/admin/embedsync/sidecarstate/"
WORKERS = "/admin/embedsync/workerstate/"
BOOKS = f"{SIDECARS}library.bookembedding/"
LATER = "now() + interval '1 hour'"
TOKEN = "b6a1b5a6-6f0a-4a3c-9d3e-0e5a3f1f2c11"


def key(pk, sidecar=KEY):
    return f"{sidecar} {pk}"


def owe(pk, run_at="NULL", *, key=KEY, token=None, error="", ago=0, worker=""):
    """A row of the ledger; ``run_at`` is SQL."""
    execute(
        "INSERT INTO embedsync_ledger"
        " (sidecar, source_pk, run_at, token, queued_at, last_error, worker, attempts)"
        f" VALUES (%s, %s, {run_at}, %s, now() - %s * interval '1 second', %s, %s, 3)",
        [key, pk, token, ago, error, worker],
    )


def owe_all_kinds():
    """Two parked rows, one that waits, one whose lease has run out, and one in a worker's hands."""
    owe("parked", error="DataError: bad\nDETAIL: row (1, secret)", ago=7300)
    owe("other", key=PARCEL_KEY, error="RateLimit: " + "x" * 300)
    owe("waits", LATER)
    owe("late", "now() - interval '1 hour'", token=TOKEN, worker="dead")
    owe("leased", LATER, token=TOKEN, worker="host:1")


def listed(response):
    """The rows of a list, by what stands in their first column, as texts by column."""
    cells = re.compile(r'<t[hd] class="field-(\w+)[^>]*>(.*?)</t[hd]>', re.DOTALL)
    found = {}
    for line in re.findall(r"<tr>.*?</tr>", response.content.decode(), re.DOTALL):
        texts = {name: re.sub(r"<[^>]+>", "", text).strip() for name, text in cells.findall(line)}
        if texts:
            found[next(iter(texts.values()))] = texts
    return found


def act(client, action, *pks, **more):
    """Run an action on rows; returns what is said afterwards."""
    data = {"action": action, "_selected_action": list(pks), **more}
    response = client.post(LEDGER, data, follow=True)
    assert response.status_code == 200
    return " ".join(map(str, response.context["messages"]))
