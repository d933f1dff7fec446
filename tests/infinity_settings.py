"""Settings of a worker whose films are embedded by the server of test_infinity.py."""

import os

from tests.infinity import KEY
from tests.settings import *  # noqa: F403
from tests.settings import EMBEDSYNC_EMBEDDERS as OTHERS

EMBEDSYNC_EMBEDDERS = {
    **OTHERS,
    "default": {
        "BACKEND": "embedsync.embedders.openai.OpenAIEmbedder",
        "MODEL": "minilm",
        "DIMENSIONS": 384,
        "OPTIONS": {
            "provider": "infinity",
            "base_url": os.environ["INFINITY_OF_TESTS"],
            "api_key": KEY,
        },
    },
}
