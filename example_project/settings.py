"""Settings of the example project: a film site that searches by meaning."""

import os
from pathlib import Path

from example_project.databases import database_settings
from example_project.minilm import MODEL_DIRECTORY

BASE_DIR = Path(__file__).resolve().parent.parent

# For this demo only: a site of yours keeps its key out of its code, and DEBUG off.
SECRET_KEY = "embedsync-example-project-and-nothing-else"
DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "embedsync",
    "example_project",
    "example_project.films",
    "example_project.blog",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "example_project.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": database_settings(os.environ.get("DATABASE_URL"))}

EMBEDSYNC_EMBEDDERS = {
    "default": {
        "BACKEND": "embedsync.embedders.sentence_transformers.SentenceTransformerEmbedder",
        "MODEL": MODEL_DIRECTORY,
        "DIMENSIONS": 384,
    }
}

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
