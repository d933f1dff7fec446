"""A real server (``make infinity``): its vectors are those of the model here, its refusals told."""

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from embedsync.breaker import Breaker
from embedsync.embedders import RefusedError, get_embedder
from embedsync.embedders.openai import OpenAIEmbedder
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder
from embedsync.embedders.trouble import trouble_of
from embedsync.models import Ledger
from embedsync.service import Service
from example_project.films.models import Movie
from example_project.minilm import MODEL_DIRECTORY
from tests.infinity import KEY, PROGRAM, running_infinity

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not PROGRAM.exists(), reason="no server is installed: run 'make infinity'"),
]

MovieEmbedding = Movie.embedding.model
TEXTS = [
    "robots left on earth",
    "A lighthouse keeper who has lost his memory finds letters that he wrote to himself.",
    "ein Raub\u00fcberfall, der schiefgeht",
    "\u6d77\u306e\u8fd1\u304f",
    "x",
]


@pytest.fixture(scope="module")
def infinity(tmp_path_factory):
    with running_infinity(tmp_path_factory.mktemp("infinity") / "log") as url:
        yield url


@pytest.fixture
def make(infinity):
    def make(**options):
        given = {"model": "minilm", "dimensions": 384, "provider": "infinity", "api_key": KEY}
        return OpenAIEmbedder(**{**given, "base_url": infinity, **options})

    return make


@pytest.fixture
def served(settings, infinity):
    """Settings whose films are embedded by the server; a test may change the entry."""
    entry = {
        "BACKEND": "embedsync.embedders.openai.OpenAIEmbedder",
        "MODEL": "minilm",
        "DIMENSIONS": 384,
        "OPTIONS": {"provider": "infinity", "base_url": infinity, "api_key": KEY},
    }
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "default": entry}
    return entry


def cosines(these, those):
    return np.sum(np.array(these) * np.array(those), axis=1)


@pytest.mark.parametrize("encoding_format", ["base64", "float"])
def test_vectors_are_the_models_own(make, encoding_format):
    embedder, here = make(encoding_format=encoding_format), get_embedder("default")
    assert min(cosines(embedder.checked_rows(TEXTS), here.checked_rows(TEXTS))) >= 0.999
    assert embedder.usage.take()[1] > len(TEXTS)
    queries = [embedder.checked_query(text) for text in TEXTS]
    assert min(cosines(queries, [here.checked_query(text) for text in TEXTS])) >= 0.999


def test_prompts_are_put_before_texts(make):
    prompted = make(query_prompt="query: ", document_prompt="passage: ")
    plain = make()
    expected = plain.checked_rows(["query: a film", "passage: a film"])
    found = [prompted.checked_query("a film"), prompted.checked_rows(["a film"])[0]]
    assert min(cosines(found, expected)) >= 0.999


def test_several_requests(make):
    embedder = make(batch_size=4, request_tokens=100)
    texts = [f"{text} {n}" for n in range(5) for text in TEXTS]
    assert min(cosines(embedder.checked_rows(texts), make().checked_rows(texts))) >= 0.999
    assert embedder.usage.take()[0] > len(texts) / 4


def test_fewer_dimensions_are_brought_to_length_one(make):
    (row,) = make(dimensions=64, send_dimensions=True).checked_rows(["a film"])
    (whole,) = make().checked_rows(["a film"])
    first = np.array(whole[:64])
    assert np.linalg.norm(first) < 0.9
    assert row == pytest.approx(first / np.linalg.norm(first), abs=1e-5)


def test_a_text_that_is_too_long_is_to_blame(make):
    with pytest.raises(Exception, match="at most 122880 characters") as caught:
        make().checked_rows(["too long " * 20_000])
    assert trouble_of(caught.value) is None
    assert "too long too long" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"api_key": "sk-of-somebody-else"}, "401 - Unauthorized"),
        ({"provider": "vllm", "path": "/v1"}, "404 - Not Found"),
    ],
    ids=["wrong key", "wrong path"],
)
def test_what_it_refuses(make, infinity, options, said):
    options = {"base_url": infinity + options.pop("path", ""), **options}
    with pytest.raises(Exception, match=said) as caught:
        make(**options).checked_rows(["a film"])
    assert isinstance(trouble_of(caught.value), RefusedError)


def test_a_wrong_model_is_no_texts_fault(make):
    service = Service(Movie.embedding.model, make(model="none"), Breaker(), None)
    found = service.embed({("1", 0): "a film"}, lambda: False)
    assert isinstance(found.trouble, RefusedError)
    assert found.failed == {}
    assert "`none` not found" in str(found.trouble)


def films(count):
    Movie.objects.bulk_create(
        Movie(title=f"Film {n}", year=2000, plot_summary=TEXTS[n % len(TEXTS)])
        for n in range(count)
    )


def test_a_worker_embeds_a_table_through_it(served, worker_process, infinity):
    films(150)
    status, output = worker_process(
        "--drain", DJANGO_SETTINGS_MODULE="tests.infinity_settings", INFINITY_OF_TESTS=infinity
    ).wait(300)
    assert status == 0, output
    stored = dict(MovieEmbedding.objects.values_list("source__title", "vector"))
    assert len(stored) == 150
    texts = [f"Film {n}. {TEXTS[n % len(TEXTS)]}" for n in range(150)]
    found = [stored[f"Film {n}"] for n in range(150)]
    here = SentenceTransformerEmbedder(model=MODEL_DIRECTORY, dimensions=384)
    assert min(cosines(found, here.embed_documents(texts))) >= 0.999
    assert Movie.objects.similar("androids on our planet")[0].plot_summary == TEXTS[0]
    assert KEY not in output


def test_a_wrong_model_is_told_and_parks_nobody(served, settings, capsys):
    settings.EMBEDSYNC_MAX_ATTEMPTS = 1
    served["MODEL"] = "none"
    films(20)
    with pytest.raises(CommandError, match="Invalid model"):
        call_command("embed_worker", "--drain", verbosity=0)
    call_command("embed_status", "films.Movie")
    assert "Available model names are ['minilm', 'another']" in capsys.readouterr().out
    owed = Ledger.objects.all()
    assert {(row.attempts, row.run_at is None) for row in owed} == {(0, False)}
    assert owed.count() == 20
