"""Embedders that cost nothing, in place of a project's own."""

from django.test import override_settings

from embedsync.conf import settings

BACKEND = "embedsync.embedders.hashing.HashingEmbedder"


def fake_embedder() -> override_settings:
    """Put a ``HashingEmbedder`` in the place of each embedder in ``EMBEDSYNC_EMBEDDERS``.

    A context manager, and a decorator of test functions and of Django's test cases. Dimensions stay
    what they are, so no migration is needed; each alias keeps a fingerprint of its own, so vectors
    of different embedders are still told apart.
    """
    fakes = {
        alias: {
            "BACKEND": BACKEND,
            "MODEL": f"fake {alias}",
            "DIMENSIONS": settings.embedder(alias).dimensions,
        }
        for alias in settings.embedders
    }
    return override_settings(EMBEDSYNC_EMBEDDERS=fakes)
