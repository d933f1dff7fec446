"""Texts of unusual size and kind, on their way to a provider over HTTP."""

import unicodedata

import pytest
from django.db import DataError

from tests.application import Application, is_settled
from tests.books import BookEmbedding
from tests.library.models import Book
from tests.provider import running_provider
from tests.sync import assert_in_step
from tests.workers import until

pytestmark = pytest.mark.django_db(transaction=True)

INSERT = (
    "INSERT INTO library_book (id, title, body, year, published) VALUES (%s, 'T', %s, 2000, true)"
)
ODD = [
    "robots 🤖 and families 👩‍👩‍👧‍👦",
    "שלום עולם, مرحبا بالعالم \u202eback to front\u202c",
    "e\u0301 beside \u00e9: equal to people, not to computers",
    "z" + "\u0353\u0351" * 40 + "algo",
    "a\ttab, a\r\nline, a\u2028separator, a\u00a0space that does not break, \x01\x1f\x7f",
    "quote ' \" \\ \\u0041 %s {title} $1 :name; DROP TABLE library_book; --",
    "\U0010ffff \ufffe \ufdd0 \u200b\ufeff",
    "\uff57\uff49\uff44\uff45, \ufb01, ß, \u0131, İ, \u2126, \u212a",
]
MEGABYTE = 1_000_000


@pytest.fixture
def provider(transactional_db, settings):
    with running_provider() as provider:
        settings.EMBEDSYNC_EMBEDDERS = {
            **settings.EMBEDSYNC_EMBEDDERS,
            "scripted": {
                "BACKEND": "tests.provider.HttpEmbedder",
                "DIMENSIONS": 64,
                "OPTIONS": {"url": provider.url, "timeout": 60.0},
            },
        }
        yield provider


def test_odd_texts_reach_the_provider_byte_for_byte(drain, provider):
    """Fault 26: nothing is stripped, normalised or escaped on the way."""
    assert any(unicodedata.normalize("NFC", text) != text for text in ODD)
    drain()
    with Application() as application:
        for number, text in enumerate(ODD):
            application.execute(INSERT, [number, text])
    drain()
    asked = sorted(text for call in provider.calls for text in call)
    assert [text.encode() for text in asked] == sorted(f"T. {text}".encode() for text in ODD)
    assert_in_step(BookEmbedding)


@pytest.mark.parametrize("text", ["a\0b", "a lone \ud800"])
def test_what_no_text_can_hold_is_refused_where_it_is_written(drain, text):
    """Fault 26: NUL and lone surrogates never come as far as a worker."""
    drain()
    with pytest.raises((DataError, UnicodeEncodeError)):
        Book.objects.create(title="T", body=text)
    assert is_settled()


def test_huge_texts_are_embedded_a_few_at_a_time(drain, provider, settings):
    """Fault 25: ten megabytes each; a worker holds as much text as it is told to, and one row."""
    drain()
    huge = ["\N{LATIN SMALL LETTER E WITH ACUTE}" * (n * MEGABYTE) for n in (5, 1, 5, 1)]
    for number, body in enumerate(huge):
        Book.objects.create(id=number, title="T", body=body)
    until(lambda: drain() and is_settled())
    sizes = [sum(len(text.encode()) for text in call) for call in provider.calls]
    assert sum(sizes) == 24 * MEGABYTE + len("T. ") * 4
    assert max(sizes) < 16.1 * MEGABYTE
    assert len(sizes) > 1
    assert_in_step(BookEmbedding)
