"""What a web process imports: no model's library, before it embeds a text."""

import subprocess
import sys

import pytest

from example_project.postgres import PROJECT

pytestmark = pytest.mark.django_db(transaction=True)

HEAVY = {
    *("torch", "sentence_transformers", "transformers", "tokenizers", "onnxruntime", "numpy"),
    *("openai", "cohere", "voyageai", "google", "httpx", "requests"),
    *("semantic_text_splitter", "tqdm", "django_q", "prometheus_client"),
}
WEB = """
import sys
import django
import embedsync
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.test.utils import setup_test_environment
from example_project.films.models import Movie

setup_test_environment()  # which keeps the contexts of pages
call_command("check")
call_command("migrate", "--check")

movie = Movie.objects.create(title="A", year=2000, plot_summary="B")
Movie.objects.bulk_create([Movie(title=f"{n}", year=n, plot_summary="C") for n in range(3)])
movie.plot_summary = "D"
movie.save()
Movie.objects.filter(year=1).update(plot_summary="E")
Movie.objects.get(year=2).delete()

client = Client(headers={"host": "localhost"})
client.force_login(User.objects.create_superuser("root"))
admin = ["", "films/movie/", f"films/movie/{movie.pk}/change/", "embedsync/sidecarstate/"]
admin += ["embedsync/ledgerrow/", "embedsync/workerstate/"]
for page in ["/", movie.get_absolute_url(), "/blog/", *(f"/admin/{name}" for name in admin)]:
    assert client.get(page).status_code == 200, page
"""
EMBEDDED = """
from embedsync.models import HNSW
from embedsync.declaration import sidecars
sidecar = Movie.embedding.model
for number, film in enumerate(Movie.objects.all()):
    vector = [0.1] * 384
    vector[number] = 1.0
    sidecar.objects.create(source=film, vector=vector, digest=b"")
assert len(movie.similar()) == 2
assert len(Movie.objects.similar([1.0] + [0.1] * 383)) == 3
assert client.get(movie.get_absolute_url()).context["alike"]
"""
# As another process has left it in a cache that they share.
CACHED = """
embedder = embedsync.embedders.get_embedder()
embedder.checked_query = lambda text: [1.0] + [0.1] * 383
embedsync.embed_query("war")
del embedder.checked_query
assert len(Movie.objects.similar("war")) == 3
assert client.get("/", {"q": "war"}).context["films"]
"""
TEXT = """
Movie.objects.similar("robots")[0]
"""


def heavy_after(code, environment):
    """What a process has imported of the heavy modules when it has run some code."""
    environment = {**environment, "DJANGO_SETTINGS_MODULE": "example_project.settings"}
    code += f"\nprint(*sorted({HEAVY} & {{*sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1].split()


def test_writing_and_browsing_import_nothing_heavy(environment):
    assert heavy_after(WEB, environment) == []


def test_more_like_this_and_vectors_import_nothing_heavy(environment):
    assert heavy_after(WEB + EMBEDDED, environment) == []


def test_a_search_text_that_is_in_the_cache_loads_no_model(environment):
    assert heavy_after(WEB + EMBEDDED + CACHED, environment) == []


def test_a_search_text_that_is_not_loads_the_model(environment):
    """So that the others are known to see it."""
    assert {"torch", "sentence_transformers"} < {*heavy_after(WEB + EMBEDDED + TEXT, environment)}
