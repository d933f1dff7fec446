"""Settings of the tests: the example project, and a library of odd models."""

from example_project.settings import *  # noqa: F403
from example_project.settings import EMBEDSYNC_EMBEDDERS as MINILM
from example_project.settings import INSTALLED_APPS as EXAMPLE_APPS

INSTALLED_APPS = [
    *EXAMPLE_APPS,
    "django.contrib.sites",
    "django.contrib.flatpages",
    "tests.library",
    "tests.cinema",
    "tests.press",
    "tests.oddities",
    "tests.articles",
]
SITE_ID = 1

EMBEDSYNC_EMBEDDERS = {
    **MINILM,
    "hashing": {
        "BACKEND": "embedsync.embedders.hashing.HashingEmbedder",
        "DIMENSIONS": 64,
    },
    "scripted": {"BACKEND": "tests.embedders.ScriptedEmbedder", "DIMENSIONS": 64},
    "worded": {"BACKEND": "tests.embedders.WordedEmbedder", "DIMENSIONS": 64},
}
EMBEDSYNC_POLL_INTERVAL = 0.05
STORAGES = {
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
