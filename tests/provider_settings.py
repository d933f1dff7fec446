"""Settings of a worker process whose books are embedded by the provider of a test."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import EMBEDSYNC_EMBEDDERS as OTHERS

URL = os.environ["PROVIDER_OF_TESTS"]
PROTOCOLS = {
    "plain": {"BACKEND": "tests.provider.HttpEmbedder", "OPTIONS": {"url": URL}},
    "openai": {
        "BACKEND": "embedsync.embedders.openai.OpenAIEmbedder",
        "MODEL": "hashed",
        "OPTIONS": {"base_url": URL, "api_key": "secret"},
    },
}
PROTOCOL = PROTOCOLS[os.environ.get("PROTOCOL_OF_TESTS", "plain")]
EMBEDSYNC_EMBEDDERS = {**OTHERS, "scripted": {"DIMENSIONS": 64, **PROTOCOL}}
EMBEDSYNC_BACKOFF = 0.1
EMBEDSYNC_PROBE_INTERVAL = 0.3
