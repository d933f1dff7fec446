"""Settings of a worker that has been deployed with another model."""

from tests.settings import *  # noqa: F403
from tests.settings import EMBEDSYNC_EMBEDDERS as OTHERS

EMBEDSYNC_EMBEDDERS = {**OTHERS, "scripted": {**OTHERS["scripted"], "MODEL": "newer"}}
