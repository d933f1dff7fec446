"""Whose fault a failed call of an embedder is: the provider's, the settings', or a text's."""

import errno
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

from django.utils.http import parse_http_date_safe

from embedsync.embedders.base import RefusedError, UnavailableError

# RFC 9110, and 425 and 429 of RFC 8470 and 6585. All from 500 on mean "later", too.
LATER = {408, 425, 429}
REFUSED = {401, 402, 403, 404, 405, 407, 410}
NO_CONNECTION = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    ssl.SSLError,
    http.client.HTTPException,  # an answer that was cut off
)
NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
# Of httpx, httpcore and requests, whose own errors may have no cause.
NO_CONNECTION_NAMES = {"TransportError", "NetworkError", "ProtocolError", "ConnectionError"}
HARMLESS = "word"  # a text that no provider has anything against
LONGEST_RETRY_AFTER = 86_400.0  # seconds; a provider that asks for more is asked again anyhow


def trouble_of(error: Exception) -> UnavailableError | None:
    """What an embedder's exception says of its provider; None where a text may be to blame.

    Besides embedsync's own exceptions it knows connections that failed, and HTTP statuses as
    ``httpx``, ``requests``, ``urllib`` and the SDKs that are made with them carry them.
    """
    for cause in causes(error):
        if isinstance(cause, UnavailableError):
            return cause
        response = getattr(cause, "response", None)
        status = status_of(cause) or status_of(response)
        said = f"{type(error).__name__}: {error}"
        if cause is not error:
            said += f" ({str(cause) or type(cause).__name__})"
        if status in REFUSED:
            return RefusedError(said)
        if status in LATER or (status or 0) >= 500:
            headers = getattr(cause, "headers", None) or getattr(response, "headers", None) or {}
            wait = max(
                seconds_of(headers.get("Retry-After"), headers.get("Date")),
                seconds_of(headers.get("Retry-After-Ms")) / 1000,  # of OpenAI and Azure
            )
            return UnavailableError(said, retry_after=wait, is_busy=status == 429)
        if status:
            return None
        if is_no_connection(cause):
            return UnavailableError(said)
    return None


def is_no_connection(error: BaseException) -> bool:
    """Whether a provider could not be reached, or broke off."""
    return (
        isinstance(error, NO_CONNECTION)
        or (isinstance(error, OSError) and error.errno in NO_ROUTE)
        or any(kind.__name__ in NO_CONNECTION_NAMES for kind in type(error).__mro__)
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def status_of(said: Any) -> int | None:
    """The HTTP status that an exception or a response carries, if any."""
    for name in ("status_code", "code"):
        if type(status := getattr(said, name, None)) is int and 400 <= status < 600:
            return int(status)
    return None


def seconds_of(retry_after: str | None, date: str | None = None) -> float:
    """How long a ``Retry-After`` header asks to wait: seconds, or an HTTP date (RFC 9110).

    ``date`` is the response's own date: what is left until then is counted by its clock.
    """
    text = str(retry_after or "0").strip()
    try:
        seconds = float(text)
    except ValueError:
        at = parse_http_date_safe(text)
        if at is None:
            return 0.0
        seconds = at - (parse_http_date_safe(date or "") or time.time())
    # NaN fails both comparisons.
    return min(seconds, LONGEST_RETRY_AFTER) if seconds > 0 else 0.0
