"""Settings for workers whose leases run out soon."""

from tests.settings import *  # noqa: F403

EMBEDSYNC_LEASE = 1.0
EMBEDSYNC_MAX_ATTEMPTS = 3
EMBEDSYNC_BACKOFF = 0.1
