"""Mistakes that get an error which names the cure."""

import pytest

import embedsync


def test_what_returns_before_its_body_has_run_is_refused():
    async def load():
        raise AssertionError("not reached")

    def chunks():
        yield

    for function in (load, chunks):
        with pytest.raises(TypeError, match=r"use paused\(\) inside"):
            embedsync.paused(function)
