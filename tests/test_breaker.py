"""Breakers, and whose fault an exception is."""

import errno
import http.client

import pytest

from embedsync.breaker import Breaker
from embedsync.embedders import RefusedError, UnavailableError
from embedsync.embedders.trouble import seconds_of, trouble_of


def wait_after(trouble):
    breaker = Breaker()
    breaker.failed(trouble)
    return breaker.seconds_left


def test_waits_of_a_breaker_are_jittered_within_their_bounds(settings, clock):
    settings.EMBEDSYNC_BACKOFF, settings.EMBEDSYNC_PROBE_INTERVAL = 2.0, 30.0
    waits = {n: [] for n in range(1, 8)}
    for _ in range(200):
        breaker = Breaker()
        for found in waits.values():
            breaker.failed(UnavailableError("down"))
            found.append(breaker.seconds_left)
            assert breaker.is_open
            breaker.failed(UnavailableError("a call that had begun before"))
            assert breaker.seconds_left == found[-1]
            clock.now += 31.0
            assert not breaker.is_open
    for n, longest in ((1, 2.0), (2, 4.0), (3, 8.0), (4, 16.0)):
        assert 0 <= min(waits[n]) < longest * 0.1
        assert longest * 0.9 < max(waits[n]) <= longest
    assert {wait for n in (5, 6, 7) for wait in waits[n]} == {30.0}
    assert wait_after(RefusedError("wrong key")) == 30.0
    assert wait_after(UnavailableError("busy", retry_after=70.0)) == 70.0


def test_a_breaker_that_has_closed_begins_anew(settings, clock):
    settings.EMBEDSYNC_BACKOFF = 2.0
    breaker = Breaker()
    for _ in range(9):
        breaker.failed(UnavailableError("down"))
        clock.now += 31.0
    breaker.answered()
    breaker.failed(UnavailableError("down"))
    assert breaker.seconds_left <= 2.0


def test_a_late_answer_does_not_close_a_breaker(clock):
    breaker = Breaker()
    breaker.failed(UnavailableError("busy", retry_after=70.0))
    breaker.answered()  # a call that had begun before
    assert (breaker.failures, breaker.is_open, str(breaker.trouble)) == (1, True, "busy")


def test_trouble_is_known_behind_other_exceptions():
    def raised(inner, outer=None, **attributes):
        error = inner
        for name, value in attributes.items():
            setattr(error, name, value)
        if outer is not None:
            outer.__cause__ = error
            error = outer
        return trouble_of(error)

    class Response:
        status_code = 429
        headers = {"Retry-After": "7"}

    assert raised(ValueError("text")) is None
    assert raised(ValueError("bad request"), status_code=400) is None
    assert isinstance(raised(ConnectionResetError(), RuntimeError("the SDK's")), UnavailableError)
    assert raised(RuntimeError("busy"), response=Response()).retry_after == 7.0
    assert isinstance(raised(RuntimeError("key"), status_code=401), RefusedError)
    for cut in (OSError(errno.ENETUNREACH, "no route"), http.client.IncompleteRead(b"")):
        assert isinstance(raised(cut, RuntimeError("the SDK's")), UnavailableError)
    protocol = type("RemoteProtocolError", (type("TransportError", (Exception,), {}),), {})
    assert isinstance(raised(protocol("disconnected")), UnavailableError)
    assert raised(OSError(errno.ENOENT, "no such file")) is None
    own = UnavailableError("mine", retry_after=3.0)
    assert raised(own, RuntimeError("around it")) is own
    # What a library did not find out by itself is not guessed from a process's exit code.
    assert raised(RuntimeError("text"), code=2) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("12", 12.0),
        ("-5", 0.0),
        ("nan", 0.0),
        ("soon", 0.0),
        ("1e9", 86_400.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read(header, seconds):
    assert seconds_of(header) == seconds


def test_a_date_is_counted_from_the_answers_own():
    """The clock of the worker's host may be wrong by a day."""
    date, later = "Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:30 GMT"

    class Answer:
        status_code, headers = 503, {"Retry-After": later, "Date": date}

    error = RuntimeError("503")
    error.response = Answer()
    assert trouble_of(error).retry_after == 30.0
