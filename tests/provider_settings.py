"""Settings of a worker process whose books are embedded by the provider of a test."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import EMBEDSYNC_EMBEDDERS as OTHERS

EMBEDSYNC_EMBEDDERS = {
    **OTHERS,
    "scripted": {
        "BACKEND": "tests.provider.HttpEmbedder",
        "DIMENSIONS": 64,
        "OPTIONS": {"url": os.environ["PROVIDER_OF_TESTS"]},
    },
}
EMBEDSYNC_BACKOFF = 0.1
EMBEDSYNC_PROBE_INTERVAL = 0.3
