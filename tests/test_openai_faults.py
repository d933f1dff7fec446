"""OpenAIEmbedder: whose fault a failure is, and that no error has a key in it."""

import logging
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import pytest
from django.core.exceptions import ImproperlyConfigured

from embedsync import conf
from embedsync.embedders import RefusedError, UnavailableError, get_embedder
from embedsync.embedders.openai import OpenAIEmbedder
from embedsync.embedders.trouble import trouble_of
from embedsync.models import Ledger
from embedsync.worker import Worker
from tests.books import BookEmbedding
from tests.library.models import Book
from tests.openai_provider import JSON, KEY, OpenAIProvider, embedder_of
from tests.provider import running_provider
from tests.sync import assert_in_step
from tests.workers import work


@pytest.fixture
def provider():
    with running_provider(OpenAIProvider) as provider:
        yield provider


@pytest.fixture
def make(provider):
    return partial(embedder_of, provider)


def failure(embedder, texts=("a", "b")):
    """The exception of a call, and what ``trouble_of`` says of it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        embedder.checked_documents(texts)
    return caught.value, trouble_of(caught.value)


class TestFaults:
    @pytest.mark.parametrize("date", [False, True], ids=["seconds", "HTTP date"])
    def test_too_many_requests(self, make, provider, date):
        at = datetime.now(UTC) + timedelta(seconds=300)
        provider.fails(429, Retry_After=format_datetime(at, usegmt=True) if date else "300")
        _, trouble = failure(make())
        assert trouble.is_busy
        assert 200 < trouble.retry_after <= 300

    def test_milliseconds(self, make, provider):
        provider.fails(429, Retry_After_Ms="2500")
        assert failure(make())[1].retry_after == 2.5
        provider.fails(503, Retry_After="7", Retry_After_Ms="6500")
        assert failure(make())[1].retry_after == 7

    @pytest.mark.parametrize("status", [408, 500, 502, 503, 529])
    def test_the_provider_is_unwell(self, make, provider, status):
        provider.fails(status, "overloaded")
        _, trouble = failure(make())
        assert type(trouble) is UnavailableError
        assert f"{status} - overloaded" in str(trouble)
        assert len(provider.calls) == 1  # the library does not try again by itself

    @pytest.mark.parametrize("status", [401, 402, 403, 404])
    def test_the_provider_refuses(self, make, provider, status):
        provider.fails(status, "The model `hashed` does not exist")
        _, trouble = failure(make())
        assert isinstance(trouble, RefusedError)
        assert "The model `hashed` does not exist" in str(trouble)

    def test_nothing_is_left_to_pay_with(self, make, provider):
        """No waiting ends it, though it is a 429: somebody has to see to it."""
        reason = {"message": "You exceeded your current quota.", "code": "insufficient_quota"}
        provider.answer = lambda body: (429, JSON, {"error": reason})
        _, trouble = failure(make())
        assert isinstance(trouble, RefusedError)
        assert "429 - You exceeded your current quota." in str(trouble)

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_text_is_to_blame(self, make, provider, status):
        provider.refuses("long", status)
        for texts in (["a", "long"], ["long"]):
            error, trouble = failure(make(), texts)
            assert trouble is None
            assert "maximum context length" in str(error)
        assert provider.texts == [["a", "long"], ["long"]]

    def test_a_reason_without_the_text_that_it_is_about(self, make, provider):
        detail = [{"loc": ["body"], "msg": "String should be short", "input": "secret text"}]
        provider.answer = lambda body: (422, JSON, {"detail": detail})
        assert str(failure(make())[0]) == "Error code: 422 - String should be short"
        provider.answer = lambda body: (404, {"Content-Type": "text/plain"}, "no\n such page")
        assert str(failure(make())[0]) == "Error code: 404 - no such page"
        provider.answer = lambda body: (404, JSON, {"detail": 7})
        assert str(failure(make())[0]) == "Error code: 404"

    def test_nobody_listens(self, make):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        _, trouble = failure(make(base_url=f"http://127.0.0.1:{port}/v1"))
        assert type(trouble) is UnavailableError
        assert "Connection refused" in str(trouble)

    def test_a_slow_answer(self, make, provider):
        def answer(body):
            time.sleep(1.0)
            return provider.works(body)

        provider.answer = answer
        _, trouble = failure(make(timeout=0.1))
        assert type(trouble) is UnavailableError
        assert "timed out" in str(trouble)

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("SSL_CERT_FILE", "/nowhere/certificates.pem", "No such file"),
            ("ALL_PROXY", "telnet://127.0.0.1:1", "proxy"),
        ],
        ids=["certificates", "proxy"],
    )
    def test_a_client_that_cannot_be_made(self, make, monkeypatch, variable, value, said):
        monkeypatch.setenv(variable, value)
        error, _ = failure(make(base_url="https://embeddings.internal/v1"))
        assert isinstance(error, ImproperlyConfigured)
        assert "No client of https://embeddings.internal/v1 could be made" in str(error)
        assert said in str(error)

    def test_an_answer_that_drips(self, make, provider):
        """Each byte is in time, and the last would come in minutes."""
        provider.drips()
        _, trouble = failure(make(timeout=0.5))
        assert type(trouble) is UnavailableError
        assert "no whole answer within 0.5 s" in str(trouble)

    def test_a_text_that_cannot_be_sent(self, make, provider):
        error, trouble = failure(make(), ["a \ud800"])
        assert isinstance(error, UnicodeEncodeError)
        assert trouble is None
        assert provider.calls == []


@pytest.mark.django_db(transaction=True)
def test_what_was_answered_before_trouble_is_not_asked_again(settings, provider, clock):
    backend = "embedsync.embedders.openai.OpenAIEmbedder"
    options = {"base_url": provider.url, "api_key": KEY, "request_tokens": 270}
    entry = {"BACKEND": backend, "MODEL": "m", "DIMENSIONS": 64, "OPTIONS": options}
    settings.EMBEDSYNC_EMBEDDERS = {**settings.EMBEDSYNC_EMBEDDERS, "scripted": entry}
    worker = Worker()
    worker.start()
    work(worker)
    Book.objects.bulk_create(Book(title=f"{n:050}") for n in range(30))  # ten a request
    busy = (429, JSON, {"error": {"message": "slow down"}})
    provider.answer = lambda body: provider.works(body) if len(provider.calls) == 1 else busy
    work(worker)
    first, second = provider.texts
    assert (len(first), len(second), Ledger.objects.count()) == (10, 10, 20)

    provider.recovers()
    clock.now += 30.0
    work(worker)
    requests = provider.texts
    assert not set(first) & {text for request in requests[1:] for text in request}
    # Each is a call, whether it was answered or not.
    assert get_embedder("scripted").usage.calls == len(requests)
    assert_in_step(BookEmbedding)


class TestKeys:
    def test_from_the_environment(self, make, provider, monkeypatch):
        monkeypatch.setenv("KEY_OF_FILMS", f" {KEY}\n")
        make(api_key=None, api_key_env="KEY_OF_FILMS").checked_query("a")
        assert provider.heard[0][1]["authorization"] == f"Bearer {KEY}"

    def test_the_usual_variable(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("MXBAI_API_KEY", f"{KEY}-too")
        assert OpenAIEmbedder(model="m", dimensions=3)._key == KEY
        assert OpenAIEmbedder(model="m", dimensions=3, provider="mixedbread")._key == f"{KEY}-too"

    def test_openais_key_is_sent_to_nobody_else(self, make, provider, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        make(api_key=None).checked_query("a")
        assert KEY not in str(provider.heard)
        make(api_key=None, provider="openai").checked_query("a")  # unless a gateway is OpenAI's
        assert KEY in str(provider.heard)

    def test_nor_is_the_account(self, make, provider, monkeypatch):
        monkeypatch.setenv("OPENAI_ORG_ID", "org-films")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-films")
        make().checked_query("a")
        make(provider="mixedbread").checked_query("a")
        assert "-films" not in str(provider.heard)
        make(provider="openai").checked_query("a")
        assert provider.heard[-1][1]["openai-organization"] == "org-films"
        assert provider.heard[-1][1]["openai-project"] == "proj-films"

    def test_settings_are_shown_without_it(self, settings):
        options = {"api_key": KEY}
        settings.EMBEDSYNC_EMBEDDERS = {
            "default": {"BACKEND": "a.B", "DIMENSIONS": 3, "OPTIONS": options}
        }
        config = conf.settings.embedder("default")
        assert config.options == options
        assert KEY not in repr(config)

    @pytest.mark.parametrize(
        ("options", "variable"),
        [
            ({}, "OPENAI_API_KEY"),
            ({"provider": "azure", "base_url": "http://x"}, "AZURE_OPENAI_API_KEY"),
            ({"api_key_env": "KEY_OF_FILMS"}, "KEY_OF_FILMS"),
            ({"api_key": ""}, r"OPTIONS\['api_key'\]"),
        ],
        ids=["usual", "Azure", "own", "empty"],
    )
    def test_none(self, monkeypatch, options, variable):
        for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        embedder = OpenAIEmbedder(model="m", dimensions=3, **options)
        with pytest.raises(ImproperlyConfigured, match=f"There is no API key in .*{variable}"):
            embedder.embed_query("a")

    def test_one_that_cannot_be_sent_is_not_shown(self):
        embedder = OpenAIEmbedder(model="m", dimensions=3, api_key="sk-\u05d0 and more")
        with pytest.raises(ImproperlyConfigured, match="is no API key") as caught:
            embedder.embed_query("a")
        assert "\u05d0" not in str(caught.value)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500])
    @pytest.mark.parametrize("stars", [False, True], ids=["in full", "with stars"])
    def test_no_error_and_no_log_has_it(self, make, provider, caplog, status, stars):
        caplog.set_level(logging.DEBUG)
        echoed = f"{KEY[:7]}*****{KEY[-4:]}" if stars else KEY
        provider.fails(status, f"Incorrect API key provided: {echoed}.")
        embedder = make()
        error, trouble = failure(embedder, ["a"])
        logging.getLogger("embedsync").error("it failed", exc_info=error)
        said = [str(error), repr(error), str(trouble), caplog.text, repr(embedder)]
        said += map(str, vars(error).values())
        assert "Incorrect API key provided: ***" in str(error)
        for secret in (KEY, KEY[:7], KEY[-4:]):
            assert not any(secret in text for text in [*said, embedder.query_fingerprint])

    @pytest.mark.parametrize("repeated", ["Bearer abcdef1234567890", "abcdef1234567890"])
    def test_a_token_in_a_header(self, make, provider, repeated):
        provider.fails(401, f"bad header '{repeated}'")
        headers = {"Authorization": "Bearer abcdef1234567890", "X-Version": "1"}
        error, _ = failure(make(headers=headers))
        assert "abcdef" not in str(error)
        assert "401" in str(error)

    def test_short_ones_and_secrets_in_headers(self, make, provider):
        provider.fails(401, "wrong: k3y, and seventeen-secrets")
        error, _ = failure(make(api_key="k3y", headers={"X-Key": "seventeen-secrets"}))
        assert str(error) == "Error code: 401 - wrong: ***, and ***"
