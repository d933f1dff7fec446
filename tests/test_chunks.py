"""Chunks: what may be declared, where texts are cut, and what is longer than a model reads."""

import builtins
import itertools

import pytest
from django.core.exceptions import ImproperlyConfigured

from embedsync import tokens
from embedsync.embedders import get_embedder
from embedsync.models import Chunks, Embedding
from embedsync.splitter import Splitter
from embedsync.tokens import Measure
from tests.articles.models import Article, Remark

POST = """# First

Some words stand here.

## Second

* one of them
* another one

```
a block of code
```

Last words of it all.
"""


def passages(text, embedder="worded", **options):
    return Splitter(Chunks(**options), get_embedder(embedder)).passages(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size= is a number of tokens, 1 or more, not 0"),
        ({"size": "200"}, "not '200'"),
        ({"size": True}, "not True"),
        ({"size": 10, "overlap": 10}, "overlap= is a number of tokens, from 0 to 9"),
        ({"size": 10, "overlap": -1}, "not -1"),
        ({"size": 10, "markdown": "yes"}, "markdown= is True or False"),
    ],
)
def test_wrong_numbers_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Chunks(**options)


def test_what_is_no_chunks_is_refused():
    with pytest.raises(TypeError, match=r"chunks= is Chunks\(size=200, overlap=20\), say, not 200"):
        Embedding("body", chunks=200)


def test_a_declaration_changes_with_its_chunks():
    fingerprints = {
        Embedding("body", chunks=chunks).declaration.fingerprint
        for chunks in (None, Chunks(8), Chunks(8, 2), Chunks(9), Chunks(8, markdown=False))
    }
    assert len(fingerprints) == 5
    # A declaration without chunks is what it was before there were any.
    assert Embedding("body").declaration.fingerprint == "d346b070b8dd1d96dc490711f51cd2eb"


def test_no_passage_is_longer_than_its_size_and_nothing_is_lost():
    words = [f"w{n}" for n in range(1000)]
    found = passages(" ".join(words), size=7)
    assert all(1 <= len(passage.split()) <= 7 for passage in found)
    assert " ".join(found).split() == words


def test_passages_overlap():
    words = [f"w{n}" for n in range(100)]
    found = passages(" ".join(words), size=6, overlap=3)
    for before, after in itertools.pairwise(found):
        shared = set(before.split()) & set(after.split())
        assert 1 <= len(shared) <= 3


def test_markdown_is_cut_at_its_sections():
    assert passages(POST, size=8)[0] == "# First\n\nSome words stand here."
    assert any(passage.startswith("## Second") for passage in passages(POST, size=8))
    plain = passages("one two\n\nthree four", size=3, markdown=False)
    assert plain == ["one two", "three four"]


def test_a_short_text_is_one_passage_and_a_blank_one_none():
    assert passages("some words", size=8) == ["some words"]
    assert passages(" \n\t ", size=8) == []


def test_without_a_tokenizer_characters_are_counted():
    found = passages("word " * 100, embedder="scripted", size=10)
    assert max(map(len, found)) <= 40
    assert len(found) >= 12


def test_a_size_that_the_model_does_not_read_is_refused():
    with pytest.raises(ImproperlyConfigured, match=r"reads 12 tokens .* Set size to 12 or less"):
        Splitter(Chunks(13), get_embedder("worded"))


def test_the_library_is_asked_for_by_name(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **more):
        if name == "semantic_text_splitter":
            raise ImportError(name)
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImproperlyConfigured, match=r"embedsync\[chunks\]"):
        Splitter(Chunks(8), get_embedder("worded"))


def test_what_is_too_long():
    measure = Measure(get_embedder("worded"))
    texts = ["a b", "word " * 12, "word " * 13, "x" * 5000, "word " * 5000, "é" * 11, "a " * 13]
    assert measure.too_long(texts) == [False, False, True, False, True, False, True]
    assert Measure(get_embedder("scripted")).too_long(["word " * 5000]) == [False]


def test_only_what_can_be_too_long_is_counted(monkeypatch):
    measure = Measure(get_embedder("worded"))
    counted = []

    class Counting:
        def encode_batch_fast(self, texts, **_):
            counted.extend(texts)
            return [text.split() for text in texts]

    monkeypatch.setattr(type(measure), "_tokenizer", Counting())
    measure.too_long(["short", "word " * 100_000, "x" * 12, "x" * 13])
    assert [len(text) for text in counted] == [12 * tokens.FIRST_LOOK, 13]


def test_without_a_tokenizer_what_is_too_long_is_guessed(monkeypatch):
    embedder = get_embedder("scripted")
    monkeypatch.setattr(type(embedder), "max_tokens", 10)
    assert Measure(embedder).too_long(["x" * 40, "x" * 41]) == [False, True]


def test_the_sidecar_has_a_passage_only_where_there_are_chunks():
    def columns(model):
        return {field.name for field in model._meta.get_fields()}

    assert "passage" in columns(Article.embedding.model)
    assert "passage" not in columns(Remark.embedding.model)
