"""Loading a model: a line that says what it took, or one clear error that says what to do."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.base import EmbedderError
from embedsync.embedders.trouble import causes, is_no_connection, status_of

logger = logging.getLogger("embedsync")

NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "bad_alloc")


@contextmanager
def loading(model: str) -> Iterator[list[str]]:
    """Log what is loaded in the block, how long it took and how much memory.

    The block puts into the list where from, and what else is worth knowing. Whatever it raises
    becomes ``ImproperlyConfigured``: no text is to blame for a model that cannot be loaded.
    """
    said: list[str] = []
    started, before = time.monotonic(), resident()
    try:
        yield said
    except (ImproperlyConfigured, EmbedderError):
        raise
    except Exception as error:
        raise ImproperlyConfigured(
            f"The model {model!r} could not be loaded. {cure(error)} ({type(error).__name__}:"
            f" {error})"
        ) from error
    megabytes = (resident() - before) / 1e6
    about = ", ".join(said)
    seconds = time.monotonic() - started
    logger.info("loaded %s: %s, %.1f s, %.0f MB", model, about, seconds, megabytes)


def resident() -> int:
    """How many bytes of memory this process holds; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cure(error: Exception) -> str:
    """What to do about an error of loading; the libraries' own say what, and seldom that."""
    for cause in causes(error):
        names = {kind.__name__ for kind in type(cause).__mro__}
        status = status_of(cause) or status_of(getattr(cause, "response", None))
        text = str(cause).lower()
        if isinstance(cause, MemoryError) or any(words in text for words in NO_MEMORY):
            return "Too little memory is free: choose a smaller model, or start fewer workers."
        if "installing optimum" in text:
            return (
                "This backend is the library optimum's. OnnxEmbedder does without: manage.py"
                " embed_export makes its files."
            )
        if "GatedRepoError" in names:
            return (
                "The hub refuses it: accept the model's terms there, and set HF_TOKEN to a token"
                " that may read it."
            )
        if "RevisionNotFoundError" in names:
            return "The hub has no such revision of it: check the option revision."
        if "RepositoryNotFoundError" in names or status in (401, 403, 404):
            return (
                "The hub has no model of this name, or none that HF_TOKEN may read: check MODEL and"
                " the token."
            )
        if "LocalEntryNotFoundError" in names or is_no_connection(cause):
            return (
                "It is not in the hub's cache on this machine, and the hub cannot be asked for it:"
                " check MODEL and the network, or name a directory."
            )
    return "Check MODEL and OPTIONS."
