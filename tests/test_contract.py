"""The contract of embedders: right ones keep it, and each wrong one breaks what it is to break."""

import re
import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, override_settings

from embedsync.testing import EmbedderContract
from example_project.postgres import PROJECT
from tests import wrong_embedders

TESTS = sorted(name for name in vars(EmbedderContract) if name.startswith("test_"))


class TestHashing(EmbedderContract):
    embedder = "hashing"


def named(name):
    entry = {"BACKEND": f"tests.wrong_embedders.{name}", "MODEL": "m", "DIMENSIONS": 64}
    return override_settings(EMBEDSYNC_EMBEDDERS={"default": entry})


@named("Unlike")
class UnlikeTests(EmbedderContract, SimpleTestCase):
    """As a project without pytest has it."""


@named("Worded")
class WordedTests(EmbedderContract, SimpleTestCase):
    pass


WRONG = [
    ("NoBatches", "each_text_has_a_vector", "batch_size is 0"),
    ("OneTooFew", "each_text_has_a_vector", "for 2 texts: EmbedderError: .* 1 vectors for 2"),
    ("TooShort", "each_text_has_a_vector", "vectors of 63 dimensions"),
    ("NotOfFullBatches", "each_text_has_a_vector", "failed for 50 texts: ValueError: too many"),
    ("Sorted", "vectors_are_in_the_order", "rows would have the vectors of other rows"),
    ("OfTheBatch", "vectors_are_in_the_order", "another vector alone than among others"),
    ("PartsAsTheyCome", "a_full_call", "text 0 has another vector than alone"),
    ("SortedWhereMany", "a_full_call", "Rows would have the vectors of other rows"),
    ("RepeatsItself", "a_full_call", "a call of 1000 texts, .* text 333 has another"),
    ("OfALargeBatch", "a_full_call", "another vector than alone"),
    ("Random", "the_same_text_has_the_same", "searches would find by chance"),
    ("Constant", "other_texts_have_other", "no search could tell them apart"),
    ("ZeroWithoutWords", "odd_texts", "a text of an emoji: EmbedderError: .* zero"),
    ("NoLongTexts", "a_very_long_text", "100000 characters .* in the end park the row"),
    ("OpposedQueries", "a_search_text_is_nearest", "both must be of the same model"),
    ("NoFingerprint", "the_fingerprint_names", "fingerprint is ''"),
    ("FingerprintWithNul", "the_fingerprint_names", "without NUL"),
    ("OfItsOwn", "the_fingerprint_names", "refuse each other's vectors"),
    ("Counting", "the_fingerprint_names", "query_fingerprint has changed with use"),
    ("SameForAllModels", "another_model_has_another", "With {'model': 'm-another'}"),
    ("SameForAllLengths", "another_model_has_another", "With {'dimensions': 65}"),
    ("KeepsTheCall", "several_threads", "keep nothing of a call in the instance"),
    ("ReadsNothing", "tokens_are_counted", "max_tokens is 0"),
    ("Padding", "tokens_are_counted", "Call no_padding"),
    ("Truncating", "tokens_are_counted", "Call no_truncation"),
    ("TokensOfCharacters", "tokens_are_counted", r"\[True, True\] are too long"),
]


@pytest.mark.parametrize(("name", "test", "said"), WRONG, ids=[name for name, *_ in WRONG])
def test_what_is_wrong_is_found_and_said(name, test, said):
    [method] = [found for found in TESTS if found.startswith(f"test_{test}")]
    # One without a batch cannot be made at all.
    wrong = ImproperlyConfigured if name == "NoBatches" else AssertionError
    with named(name), pytest.raises(wrong, match=re.compile(said, re.DOTALL)):
        getattr(EmbedderContract(), method)()


def test_each_test_has_been_seen_to_fail():
    broken = {found for found in TESTS for _, test, _ in WRONG if found.startswith(f"test_{test}")}
    assert broken == set(TESTS)
    assert {name for name, *_ in WRONG} | {"Unlike", "Worded"} == {
        name
        for name, value in vars(wrong_embedders).items()
        if isinstance(value, type) and value.__module__ == wrong_embedders.__name__
    }


def test_it_says_the_same_without_asserts(tmp_path):
    """python -O leaves out assert statements."""
    code = (
        "import django; django.setup()\n"
        "from tests.test_contract import named\n"
        "from embedsync.testing import EmbedderContract\n"
        "with named('Constant'): EmbedderContract().test_other_texts_have_other_vectors()"
    )
    run = subprocess.run(
        [sys.executable, "-O", "-c", code],
        cwd=PROJECT,
        env={"DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
    )
    assert "no search could tell them apart" in run.stderr
