"""OpenAIEmbedder: its connections, whom they are to, how long they last and who shares them."""

import gc
import gzip
import json
import multiprocessing
import time
import warnings
from functools import partial

import pytest

from embedsync.embedders import RefusedError, UnavailableError
from embedsync.embedders.trouble import trouble_of
from tests.openai_provider import JSON, KEY, KeepAlive, embedder_of
from tests.provider import running_provider


@pytest.fixture
def provider():
    with running_provider(KeepAlive) as provider:
        yield provider


@pytest.fixture
def make(provider):
    return partial(embedder_of, provider)


def test_it_is_kept_between_two_calls(make, provider):
    embedder = make()
    assert embedder.embed_query("a") != embedder.embed_query("b")
    assert (len(provider.calls), len(provider.connections)) == (2, 1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_its_own(make, provider):
    """Of one that two processes share, each would read what the other has asked for."""
    embedder = make()
    embedder.embed_query("warm")

    def ask(text, answers):
        answers.send(embedder.embed_query(text))

    context = multiprocessing.get_context("fork")
    asked, processes = {}, []
    for text in ("a", "b"):
        asked[text], there = context.Pipe(duplex=False)
        processes.append(context.Process(target=ask, args=(text, there), daemon=True))
        processes[-1].start()
        there.close()
    for text, answers in asked.items():
        assert answers.poll(10)
        assert answers.recv() == make().embed_query(text)
    for process in processes:
        process.join(10)
    assert embedder.embed_query("c") == make().embed_query("c")
    # One of this embedder, one of each fork, and one of each that was made to compare.
    assert len(provider.connections) == 1 + 2 + 3


def test_one_that_is_forgotten_is_closed(make):
    embedder = make()
    gc.collect(1)  # what it has is younger than itself
    embedder.embed_query("a")
    embedder = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_a_compressed_answer(make, provider):
    expected = make().embed_query("a")

    def answer(body):
        status, headers, content = provider.works(body)
        packed = gzip.compress(json.dumps(content).encode())
        return status, {**headers, "Content-Encoding": "gzip"}, packed

    provider.answer = answer
    assert make().embed_query("a") == expected


def test_a_compressed_answer_that_drips(make, provider):
    """Nothing comes out of it: it begins with the long name of a file."""
    name = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 60
    provider.answer = lambda body: (200, {**JSON, "Content-Encoding": "gzip"}, name)
    provider.drips()
    started = time.monotonic()
    with pytest.raises(Exception, match="no whole answer") as caught:
        make(timeout=0.5).embed_query("a")
    assert time.monotonic() - started < 2.0
    assert type(trouble_of(caught.value)) is UnavailableError


def test_a_redirect_is_not_followed(make, provider):
    """Neither texts nor the headers of a gateway are for another server."""
    with running_provider(KeepAlive) as other:
        provider.answer = lambda body: (307, {"Location": f"{other.url}/embeddings"}, {})
        with pytest.raises(RefusedError, match=f"redirects to {other.url}/embeddings"):
            make(headers={"X-Gateway": KEY}).embed_query("a")
        assert other.heard == []
