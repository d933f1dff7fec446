"""embedsync's settings: every knob, its default and its unit, in one place."""

from dataclasses import dataclass, field
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

KEYS = {"BACKEND", "MODEL", "DIMENSIONS", "OPTIONS", "ROWS_PER_MINUTE", "TOKENS_PER_MINUTE"}


@dataclass(frozen=True)
class EmbedderConfig:
    """One entry of ``EMBEDSYNC_EMBEDDERS``, which has the shape of Django's ``CACHES``."""

    alias: str
    backend: str
    model: str
    dimensions: int
    options: dict[str, Any] = field(default_factory=dict, repr=False)  # keys may be in it
    rows_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Settings:
    """The flat ``EMBEDSYNC_*`` settings, read at each access so that tests can override them."""

    @property
    def embedders(self) -> dict[str, dict[str, Any]]:
        """Embedders by alias: ``{"default": {"BACKEND", "MODEL", "DIMENSIONS", "OPTIONS"}}``.

        And, where they are to be limited, ``ROWS_PER_MINUTE`` and ``TOKENS_PER_MINUTE``.
        """
        return getattr(django_settings, "EMBEDSYNC_EMBEDDERS", {})

    def embedder(self, alias: str) -> EmbedderConfig:
        """The configuration of one embedder.

        Raises ``ImproperlyConfigured`` where the alias is unknown or its entry is incomplete.
        """
        try:
            entry = self.embedders[alias]
        except (KeyError, TypeError):
            known = ", ".join(map(repr, self.embedders or ())) or "none"
            raise ImproperlyConfigured(
                f"EMBEDSYNC_EMBEDDERS has no embedder {alias!r} (there: {known})."
            ) from None
        wrong = sorted(entry.keys() - KEYS) if isinstance(entry, dict) else [entry]
        if wrong:
            raise ImproperlyConfigured(
                f"EMBEDSYNC_EMBEDDERS[{alias!r}] is a dict with keys of {', '.join(sorted(KEYS))},"
                f" not {', '.join(map(repr, wrong))}."
            )
        dimensions = entry.get("DIMENSIONS")
        if not isinstance(entry.get("BACKEND"), str):
            raise ImproperlyConfigured(
                f"EMBEDSYNC_EMBEDDERS[{alias!r}] needs a BACKEND: the dotted path of a class."
            )
        if type(dimensions) is not int or not 0 < dimensions <= 16_000:
            raise ImproperlyConfigured(
                f"EMBEDSYNC_EMBEDDERS[{alias!r}] needs DIMENSIONS, a whole number from 1 to"
                f" 16000 (pgvector's limit for a column), not {dimensions!r}."
            )
        limits = {name: entry.get(name) for name in ("ROWS_PER_MINUTE", "TOKENS_PER_MINUTE")}
        for name, limit in limits.items():
            if limit is not None and (type(limit) is not int or limit < 1):
                raise ImproperlyConfigured(
                    f"EMBEDSYNC_EMBEDDERS[{alias!r}]: {name} is a whole number from 1 on, or left"
                    f" out for no limit, not {limit!r}."
                )
        return EmbedderConfig(
            alias,
            entry["BACKEND"],
            entry.get("MODEL", ""),
            dimensions,
            entry.get("OPTIONS", {}),
            *limits.values(),
        )

    @property
    def batch_size(self) -> int:
        """How many rows a worker claims at a time."""
        return getattr(django_settings, "EMBEDSYNC_BATCH_SIZE", 500)

    @property
    def batch_bytes(self) -> int:
        """How many bytes of text a worker reads at a time; a single row may have more."""
        return getattr(django_settings, "EMBEDSYNC_BATCH_BYTES", 16_000_000)

    @property
    def concurrency(self) -> int:
        """How many calls of an embedder a worker makes at a time; more than 1 for remote ones."""
        return getattr(django_settings, "EMBEDSYNC_CONCURRENCY", 1)

    @property
    def lease(self) -> float:
        """Seconds after which the rows of a worker that went silent are taken over by another."""
        return getattr(django_settings, "EMBEDSYNC_LEASE", 60.0)

    @property
    def grace(self) -> float:
        """Seconds that a worker which is told to stop gives to calls that it has in hand."""
        return getattr(django_settings, "EMBEDSYNC_GRACE", 45.0)

    @property
    def poll_interval(self) -> float:
        """Seconds an idle worker waits before it looks again."""
        return getattr(django_settings, "EMBEDSYNC_POLL_INTERVAL", 0.2)

    @property
    def max_attempts(self) -> int:
        """How often a row is tried before it is parked."""
        return getattr(django_settings, "EMBEDSYNC_MAX_ATTEMPTS", 8)

    @property
    def backoff(self) -> float:
        """Longest wait in seconds before the first retry; it doubles with each further one."""
        return getattr(django_settings, "EMBEDSYNC_BACKOFF", 2.0)

    @property
    def max_backoff(self) -> float:
        """Longest wait in seconds before any retry."""
        return getattr(django_settings, "EMBEDSYNC_MAX_BACKOFF", 600.0)

    @property
    def probe_interval(self) -> float:
        """Seconds between two calls of a worker to a provider that does not answer, at most."""
        return getattr(django_settings, "EMBEDSYNC_PROBE_INTERVAL", 30.0)

    @property
    def ef_search(self) -> int:
        """``hnsw.ef_search`` of a search: more finds more and takes longer (1 to 1000)."""
        return getattr(django_settings, "EMBEDSYNC_EF_SEARCH", 300)

    @property
    def query_cache(self) -> str | None:
        """The alias in ``CACHES`` that keeps the vectors of search texts; None for no cache."""
        return getattr(django_settings, "EMBEDSYNC_QUERY_CACHE", "default")

    @property
    def query_cache_seconds(self) -> float:
        """How many seconds the vector of a search text is kept."""
        return getattr(django_settings, "EMBEDSYNC_QUERY_CACHE_SECONDS", 86_400.0)


settings = Settings()
