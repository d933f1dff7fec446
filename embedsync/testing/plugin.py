"""pytest fixtures, for ``pytest_plugins = ["embedsync.testing.plugin"]``; they need pytest-django.

No entry point: that would make pytest import it in every project of an environment.
"""

from collections.abc import Callable, Iterator

import pytest

from embedsync import testing


@pytest.fixture
def fake_embedder() -> Iterator[None]:
    """Vectors of hashed words, without a model, for the length of a test."""
    with testing.fake_embedder():
        yield


@pytest.fixture
def embed_now(db: None) -> Callable[..., None]:
    """``embedsync.testing.embed_now``: embed all that is owed."""
    return testing.embed_now


@pytest.fixture
def assert_in_sync(db: None) -> Callable[..., None]:
    """``embedsync.testing.assert_in_sync``: each row has the vectors of its text."""
    return testing.assert_in_sync
