"""Metrics for Prometheus (the extra ``embedsync[prometheus]``): of databases, and of workers."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, router, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from embedsync.database import limited
from embedsync.declaration import EmbeddingModel, key_of, sidecars
from embedsync.embedders import made_embedders
from embedsync.signals import embedding_failed, embeddings_updated
from embedsync.status import SidecarStatus, chosen, statuses, workers

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, start_http_server
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise ImproperlyConfigured(
        "embedsync.metrics needs the extra embedsync[prometheus]:"
        " pip install 'prometheus-client>=0.21'"
    ) from error

logger = logging.getLogger("embedsync")

TIMEOUT_SECONDS = 5

OF_DATABASES = {
    "embedsync_up": "1 where the database has answered, 0 where it has not.",
    "embedsync_workers": "Workers that have been heard of within the last three minutes.",
}
OF_SIDECARS = {
    "embedsync_rows": "Rows that have a vector; over a million the server's estimate.",
    "embedsync_waiting_rows": "Events in the inbox, and rows that are due or will be.",
    "embedsync_leased_rows": "Rows in a worker's hands.",
    "embedsync_parked_rows": "Rows that failed too often and are given up.",
    "embedsync_oldest_wait_seconds": "How long the oldest row that is not parked has waited.",
    "embedsync_fill_complete": "1 where all rows have been compared, 0 where a fill is to do so.",
    "embedsync_fill_left_rows": "Rows that a fill has before it, a million at most.",
    "embedsync_schema_error": "1 where a column or table is missing in the database.",
    "embedsync_not_served": "1 where settings, provider or declaration keep workers from it.",
}
OF_EMBEDDERS = {
    "embedsync_calls": "Calls of an embedder.",
    "embedsync_tokens": "Tokens of the texts that it was called for, about, if it does not count.",
}


class StatusCollector:
    """Asks a database at each scrape how its sidecars are; or all that hold one, without a name.

    A database that does not answer is ``embedsync_up 0`` and has no other metrics: the others, and
    whatever else the registry holds, are told of all the same.
    """

    def __init__(self, using: str | None = None) -> None:
        self.using = using

    def describe(self) -> list[GaugeMetricFamily]:
        """What there will be: or the registry would ask the database while a project starts."""
        return list(families().values())

    def collect(self) -> list[GaugeMetricFamily]:
        found = families()
        for using in databases() if self.using is None else [self.using]:
            try:
                with limited(using, statement_timeout=TIMEOUT_SECONDS):
                    told = statuses(using, chosen([], using))
                    alive = sum(worker.is_alive for worker in workers(using))
            except Error as error:
                logger.warning("database %r tells no metrics: %s", using, error)
                found["embedsync_up"].add_metric([using], 0)
                continue
            found["embedsync_up"].add_metric([using], 1)
            found["embedsync_workers"].add_metric([using], alive)
            for status in told:
                for name, value in values_of(status).items():
                    if value is not None:
                        found[name].add_metric([status.sidecar], value)
        return list(found.values())


class WorkerCounters:
    """What workers in this process have done, counted by their signals.

    Every sidecar begins at 0: Prometheus does not see the first step of a counter that was not
    there before it.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, documentation: str) -> Counter:
            made = Counter(f"embedsync_{name}", documentation, ["sidecar"], registry=registry)
            for sidecar in sidecars():
                made.labels(key_of(sidecar))
            return made

        self.embedded = counter("embedded_rows", "Rows that got a new vector.")
        self.failures = counter("failures", "Attempts that failed.")
        # Not "parked_rows", which is a gauge: in OpenMetrics a family's name has no "_total".
        self.parked = counter("parked", "Rows that were given up.")
        registry.register(self)
        embeddings_updated.connect(self.updated)
        embedding_failed.connect(self.failed)

    def describe(self) -> list[CounterMetricFamily]:
        return list(counted().values())

    def collect(self) -> list[CounterMetricFamily]:
        """What the embedders of this process count themselves."""
        found = counted()
        for alias, embedder in made_embedders().items():
            found["embedsync_calls"].add_metric([alias], embedder.usage.calls)
            found["embedsync_tokens"].add_metric([alias], embedder.usage.tokens)
        return list(found.values())

    def updated(self, sidecar: type[EmbeddingModel], pks: Sequence[Any], **more: Any) -> None:
        """Receives ``embeddings_updated``."""
        self.embedded.labels(key_of(sidecar)).inc(len(pks))

    def failed(self, sidecar: type[EmbeddingModel], parked: bool, **more: Any) -> None:
        """Receives ``embedding_failed``."""
        self.failures.labels(key_of(sidecar)).inc()
        if parked:
            self.parked.labels(key_of(sidecar)).inc()


@cache
def count() -> WorkerCounters:
    """Count what workers in this process do, in prometheus_client's default registry.

    For projects that run ``process_pending()`` where they serve that registry already.
    """
    return WorkerCounters(REGISTRY)


def serve(port: int) -> None:
    """Serve the default registry, with the counters of a worker.

    It listens on all addresses, because who scrapes a worker is on another machine.
    """
    count()
    start_http_server(port)


@never_cache
@require_safe
def view(request: HttpRequest) -> HttpResponse:
    """The metrics of all databases, for a project's urls. What it tells is not for everybody."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(status_registry()), content_type=content_type)


# ATOMIC_REQUESTS would begin a transaction before the view could say that a database is down.
for alias in connections:
    transaction.non_atomic_requests(alias)(view)


@cache
def status_registry() -> CollectorRegistry:
    """A registry of its own, so that a project that serves the default one tells nothing twice."""
    registry = CollectorRegistry()
    registry.register(StatusCollector())
    return registry


def databases() -> list[str]:
    """The databases that hold sidecars."""
    return sorted({router.db_for_write(sidecar) for sidecar in sidecars()})


def families() -> dict[str, GaugeMetricFamily]:
    """All gauges, without values."""
    labelled = ((OF_DATABASES, "database"), (OF_SIDECARS, "sidecar"))
    return {
        name: GaugeMetricFamily(name, documentation, labels=[label])
        for documented, label in labelled
        for name, documentation in documented.items()
    }


def counted() -> dict[str, CounterMetricFamily]:
    """The counters of embedders, without values."""
    return {
        name: CounterMetricFamily(name, documentation, labels=["embedder"])
        for name, documentation in OF_EMBEDDERS.items()
    }


def values_of(status: SidecarStatus) -> dict[str, float | None]:
    """The gauges of a sidecar; None for what is not known."""
    complete = status.fill.state == "complete"
    return {
        "embedsync_rows": status.rows,
        "embedsync_waiting_rows": status.waiting,
        "embedsync_leased_rows": status.leased,
        "embedsync_parked_rows": status.parked,
        "embedsync_oldest_wait_seconds": status.oldest_wait,
        "embedsync_fill_complete": complete,
        "embedsync_fill_left_rows": 0 if complete else status.fill.left,
        "embedsync_schema_error": bool(status.schema_error),
        "embedsync_not_served": bool(status.error),
    }
