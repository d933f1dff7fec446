"""Keys of providers: found in settings or environment, and kept out of whatever is said."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.trouble import causes

LONG = 12  # characters, from which on the beginning of a key tells that it is one
BEGINNING = 6


def found_key(key: str | None, variable: str) -> str:
    """The key that is given, or that which an environment variable holds; "" where none is needed.

    Raises ``ImproperlyConfigured``, without the key, where it is missing or cannot be one.
    """
    found = (os.environ.get(variable, "") if key is None else key).strip()
    place = "OPTIONS['api_key']" if key is not None else f"the environment variable {variable}"
    if not found and (variable or key is not None):
        raise ImproperlyConfigured(
            f"There is no API key in {place}: set it, name another variable in"
            " OPTIONS['api_key_env'], or give the key itself as OPTIONS['api_key']."
        )
    # Else the library below would show it, in the error of a header that cannot be sent.
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise ImproperlyConfigured(f"What {place} holds is no API key: it has odd characters.")
    return found


@contextmanager
def unsaid(*secrets: str) -> Iterator[None]:
    """Take secrets out of the message of any exception, and of those that led to it.

    Providers repeat a wrong key in their answer, some of them with stars in its middle.
    """
    try:
        yield
    except Exception as error:
        pattern = "|".join(pattern_of(secret) for secret in secrets if secret)

        def masked(said: object) -> object:
            return re.sub(pattern, "***", said) if isinstance(said, str) else said

        for cause in causes(error) if pattern else ():
            cause.args = tuple(map(masked, cause.args))
            own = vars(cause)
            if "message" in own:  # of the openai library's, besides the arguments
                own["message"] = masked(own["message"])
        raise


def pattern_of(secret: str) -> str:
    if len(secret) < LONG:
        return re.escape(secret)
    return re.escape(secret[:BEGINNING]) + r"[^\s\"',;)\]}]*"
