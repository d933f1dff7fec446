"""The tests of a project that uses embedsync, as docs/testing.md has them: they can fail, too."""

import os
import re
import subprocess
import sys

import pytest

from embedsync.embedders.hashing import HashingEmbedder
from tests.migration_project import DIMENSIONS, ROOT
from tests.provider import running_provider

PAGE = ROOT / "docs" / "testing.md"
MODELS = """
class Movie(EmbeddedModel):
    title = models.TextField()
    plot = models.TextField()
    embedding = Embedding("title", "plot")
"""
MORE = """
EMBEDSYNC_EMBEDDERS = {{"default": {{
    "BACKEND": "shop.embedders.TeamEmbedder",
    "MODEL": "our-model-3",
    "DIMENSIONS": {dimensions},
    "OPTIONS": {{"url": {url!r}}},
}}}}
"""


@pytest.fixture
def tested(project):
    """The project of the page, with its tests; its embedder's server is a real one."""
    embedder = HashingEmbedder(model="", dimensions=DIMENSIONS)
    with running_provider() as provider:
        provider.answer = lambda sent: (200, {}, embedder.embed_documents(sent["inputs"]))
        for name, code in snippets():
            (project.folder / name).write_text(code)
        code = project.code(MODELS, more=MORE.format(dimensions=DIMENSIONS, url=provider.url))
        code.run("makemigrations")
        yield project, provider


def snippets():
    """The page's files: each begins with its name."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    named = [(re.match(r"# (\S+\.py)\n", block), block) for block in blocks]
    return [(match[1], block) for match, block in named if match]


def run(project, *command):
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": f"{project.folder}:{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    found = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return found.returncode, found.stdout


PYTEST = ("pytest", "-p", "no:cacheprovider", "-W", "error", "-q", "--rootdir", ".")


def test_the_pages_tests_pass_with_pytest(tested):
    project, provider = tested
    status, output = run(project, *PYTEST)
    assert status == 0, output
    assert re.search(r"^16 passed", output, re.MULTILINE), output
    assert provider.calls  # by the contract; all others had fakes
    assert not any("Red Dust" in text for sent in provider.calls for text in sent["inputs"])


def test_the_pages_tests_pass_with_djangos_runner(tested):
    project, _ = tested
    status, output = run(project, "django", "test", "test_cases")
    assert status == 0, output
    assert "Ran 2 tests" in output


def test_without_migrations_too(tested):
    """Where the extension is in the template, as the page says."""
    project, _ = tested
    template = f"template_{project.name}"
    (project.folder / "more.py").write_text(
        f"from settings import *\nDATABASES['default']['TEST'] = {{'TEMPLATE': {template!r}}}\n"
    )
    project.sql(f"CREATE DATABASE {template}")
    try:
        with project.connect(template) as connection:
            connection.execute("CREATE EXTENSION vector")
        arguments = ["--ds", "more", "--nomigrations", "test_cases.py", "test_search.py"]
        status, output = run(project, *PYTEST, *arguments)
    finally:
        project.sql(f"DROP DATABASE {template}")
    assert status == 0, output


def test_committed_transactions_among_others(tested):
    """Django's flush leaves events of truncated tables to the tests after it."""
    project, _ = tested
    (project.folder / "test_more.py").write_text(
        "import pytest\n"
        "from shop.models import Movie\n"
        "pytestmark = [pytest.mark.usefixtures('fake_embedder'),\n"
        "              pytest.mark.django_db(transaction=True)]\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_it(n, embed_now, assert_in_sync):\n"
        "    Movie.objects.create(title='Salt', plot='Sailors')\n"
        "    embed_now()\n"
        "    assert_in_sync()\n"
        "    assert [m.title for m in Movie.objects.similar('sailors')] == ['Salt']\n"
    )
    status, output = run(project, *PYTEST, "test_more.py", "test_search.py")
    assert status == 0, output


def test_a_test_that_fails_says_why(tested):
    project, provider = tested
    provider.fails(500)
    (project.folder / "test_fails.py").write_text(
        "from shop.models import Movie\n"
        "def test_it(embed_now):\n"
        "    Movie.objects.create(title='Salt', plot='Sailors')\n"
        "    embed_now()\n"
    )
    status, output = run(project, *PYTEST, "test_fails.py", "test_embedders.py")
    assert status == 1
    assert "its provider is in trouble: HTTPStatusError: Server error '500" in output
    assert "embed_documents() failed for 1 texts: HTTPStatusError" in output


def test_nothing_is_loaded_that_was_not_asked_for(tested):
    project, _ = tested
    (project.folder / "conftest.py").unlink()
    status, output = run(project, *PYTEST, "test_search.py")
    assert status == 1
    assert "fixture 'fake_embedder' not found" in output
    # From the command line it is loaded before Django is set up.
    status, output = run(project, *PYTEST, "-p", "embedsync.testing.plugin", "test_search.py")
    assert status == 0, output
