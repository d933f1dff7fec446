"""Settings for workers whose leases run out soon."""

import os

from tests.settings import *  # noqa: F403

EMBEDSYNC_LEASE = float(os.environ.get("SHORT_LEASE", "1"))
EMBEDSYNC_MAX_ATTEMPTS = int(os.environ.get("SHORT_LEASE_ATTEMPTS", "3"))
EMBEDSYNC_GRACE = float(os.environ.get("SHORT_GRACE", "45"))
EMBEDSYNC_PROBE_INTERVAL = float(os.environ.get("SHORT_PROBE", "30"))
EMBEDSYNC_BACKOFF = 0.1
