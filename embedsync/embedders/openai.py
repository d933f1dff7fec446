"""Servers that speak OpenAI's protocol, through the openai library (``embedsync[openai]``)."""

import json
import math
import operator
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.base import Embedder, EmbedderError, RefusedError
from embedsync.embedders.deadline import client_with
from embedsync.embedders.keys import found_key, unsaid
from embedsync.embedders.presets import PRESETS, Preset, preset_of
from embedsync.embedders.usage import tokens_of

BATCH_SIZE = 128  # answered within seconds; larger ones save little
BYTES = 2  # of a token, at least, in nearly all texts; a request that has more is halved
CONNECT_SECONDS = 5.0
SHORTEST_SECRET = 7  # characters, of what is said in headers
SAME = 1e-5  # as good as length 1, for a float32
REASONS = ("message", "msg", "detail", "error")
# A 429 that no waiting ends: somebody has to pay (OpenAI's guide to error codes).
OUT_OF_QUOTA = "insufficient_quota"
REASON_LENGTH = 200

Answer = tuple[list[list[float]], int | None]  # vectors, and how many tokens were taken


class OpenAIEmbedder(Embedder):
    """OpenAI, Azure, Mixedbread, TEI, vLLM, Ollama, Infinity, LiteLLM, and what is like them.

    Options: ``provider`` (a name in ``PRESETS``) or ``base_url``, or both; ``api_key``, or
    ``api_key_env``, the name of an environment variable; ``timeout`` in seconds; ``batch_size`` and
    ``request_tokens``, the most texts and tokens of a request; ``max_tokens`` of a text that the
    model reads; ``send_dimensions``, whether to tell the model how many to return; ``normalize``
    scales vectors to length 1; ``query_prompt`` and ``document_prompt``; ``extra_body`` and
    ``headers`` of each request; ``encoding_format``, "float" for servers that know no base64.
    """

    counts_tokens = True

    def __init__(
        self,
        *,
        model: str,
        dimensions: int,
        provider: str | Preset | None = None,
        base_url: str = "",
        api_key: str | None = None,
        api_key_env: str = "",
        timeout: float = 60.0,
        batch_size: int | None = None,
        request_tokens: int | None = None,
        max_tokens: int | None = None,
        send_dimensions: bool | None = None,
        normalize: bool = True,
        query_prompt: str = "",
        document_prompt: str = "",
        extra_body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        encoding_format: str = "base64",
    ) -> None:
        super().__init__(model=model, dimensions=dimensions)
        # Of an unknown server nothing is known, and a key of OpenAI's is not for it.
        self.preset = preset_of(provider or (Preset() if base_url else "openai"))
        self.base_url = base_url or self.preset.base_url
        if not model:
            raise ImproperlyConfigured(f"{type(self).__name__} needs MODEL: the name of a model.")
        if not self.base_url:
            raise ImproperlyConfigured(f"OPTIONS['base_url']: provider {provider!r} needs one.")
        if not str(self.base_url).startswith(("http://", "https://")):
            raise ImproperlyConfigured(
                "OPTIONS['base_url'] has to begin with 'http://' or 'https://'."
            )
        if not isinstance(api_key, str | None):
            raise ImproperlyConfigured("OPTIONS['api_key'] has to be a string.")
        if "@" in urlsplit(self.base_url).netloc:
            raise ImproperlyConfigured("OPTIONS['base_url'] has a password in it: use api_key.")
        if encoding_format not in ("base64", "float"):
            raise ImproperlyConfigured("OPTIONS['encoding_format'] is 'base64' or 'float'.")
        limits = {"batch_size": batch_size, "request_tokens": request_tokens}
        for name, number in {**limits, "max_tokens": max_tokens}.items():
            if number is not None and (type(number) is not int or number < 1):
                raise ImproperlyConfigured(f"OPTIONS[{name!r}] is {number!r}: 1 or more is needed.")
        # NaN fails both comparisons.
        if type(timeout) not in (int, float) or not 0 < timeout < math.inf:
            raise ImproperlyConfigured(f"OPTIONS['timeout'] is {timeout!r}: seconds are needed.")
        self.inputs = batch_size or self.preset.inputs
        self.batch_size = batch_size or min(BATCH_SIZE, self.inputs)
        self.request_tokens = request_tokens or self.preset.tokens
        self.send_dimensions = send_dimensions
        if send_dimensions is None:
            self.send_dimensions = model.startswith(self.preset.resizable)
        self.timeout = timeout
        self.normalize = normalize
        self.query_prompt = query_prompt
        self.document_prompt = document_prompt
        self.extra_body = dict(extra_body or {})
        self.headers = checked_headers(headers or {})
        self.encoding_format = encoding_format
        self._max_tokens = max_tokens
        self._api_key = api_key
        self._key_env = api_key_env or self.preset.key_env
        self._clients: dict[int, Any] = {}  # by process
        self._said_extra = json.dumps(self.extra_body, sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """Neither server nor key belong to it: a model may move, and its vectors stay as they are.

        So ``MODEL`` has to name it, also where a server has only one and does not ask.
        """
        return f"{super().fingerprint}:{self.document_prompt!r}:{self.normalize}:{self._said_extra}"

    @property
    def query_fingerprint(self) -> str:
        return f"{self.fingerprint}:{self.query_prompt!r}"

    @property
    def max_tokens(self) -> int | None:
        return self._max_tokens

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """In as many requests as its provider's limits ask for; workers' calls are one each."""
        rows: list[list[float]] = []
        for number, request in enumerate(self._cut(texts, self.inputs)):
            self.usage.add(calls=1 if number else 0)  # the first has been counted
            found, tokens = self._ask(request)
            if type(tokens) is not int or tokens < 0:
                tokens = tokens_of(request)
            self.usage.add(tokens=tokens)
            rows += found
        return rows

    def embed_query(self, text: str) -> list[float]:
        return self._ask([text], query=True)[0][0]

    def calls_for(self, texts: Sequence[str]) -> Iterator[list[str]]:
        return self._cut(texts, self.batch_size)

    def _cut(self, texts: Sequence[str], inputs: int) -> Iterator[list[str]]:
        request: list[str] = []
        taken = 0
        for text in texts:
            tokens = len(text.encode("utf-8", "surrogatepass")) // BYTES + 1
            is_full = self.request_tokens is not None and taken + tokens > self.request_tokens
            if request and (is_full or len(request) == inputs):
                yield request
                request, taken = [], 0
            request.append(text)
            taken += tokens
        if request:
            yield request

    def _ask(self, texts: list[str], *, query: bool = False) -> Answer:
        """One request."""
        with unsaid(self._key, *self._header_words), explained():
            client = self._client
            try:
                rows, tokens = self._rows(client, texts, query=query)
                return [scaled(row) for row in rows] if self.normalize else rows, tokens
            except UnicodeEncodeError:
                raise
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise RefusedError(
                    f"{self.base_url} answers with something other than vectors: is base_url"
                    f" right? ({type(error).__name__}: {error})"
                ) from error

    def _rows(self, client: Any, texts: list[str], *, query: bool) -> Answer:
        """What a single request returns, in the order of ``texts``."""
        prompt = self.query_prompt if query else self.document_prompt
        extra = self._extra(query=query)
        if prompt and self.preset.takes_prompt:
            extra["prompt"] = prompt
        elif prompt:
            texts = [prompt + text for text in texts]
        options: Any = {"encoding_format": "float"} if self.encoding_format == "float" else {}
        # Where it is not told otherwise, the library asks for base64 and decodes it.
        answer = client.embeddings.create(
            model=self.model, input=texts, extra_body=extra, **options
        )
        numbers: list[Any] = [getattr(item, "index", None) for item in answer.data]
        if all(number is None for number in numbers):
            numbers = list(range(len(numbers)))
        elif None in numbers:
            raise EmbedderError(f"{self.base_url} numbers some of its vectors, and others not.")
        items = zip(numbers, answer.data, strict=True)
        found = {operator.index(number): item.embedding for number, item in items}
        if not all(found.values()):
            raise ValueError("empty vectors")
        if sorted(found) != list(range(len(texts))) or len(answer.data) != len(texts):
            raise EmbedderError(
                f"{self.base_url} returned {len(answer.data)} vectors for {len(texts)} texts, with"
                f" the indexes {sorted(found)[:10]}..."
            )
        usage = answer.usage
        return [found[n] for n in range(len(texts))], usage and usage.total_tokens

    def _extra(self, *, query: bool) -> dict[str, Any]:
        """The fields of a request besides model and texts."""
        sent = {self.preset.dimensions_field: self.dimensions} if self.send_dimensions else {}
        return {**sent, **self.extra_body}

    @cached_property
    def _key(self) -> str:
        return found_key(self._api_key, self._key_env)

    @property
    def _header_words(self) -> list[str]:
        """What of the headers may be a secret: "Bearer" is none, and what follows it is."""
        words = [word for value in self.headers.values() for word in value.split()]
        return [word for word in words if len(word) > SHORTEST_SECRET]

    @property
    def _client(self) -> Any:
        # A fork has copies of its connections, where it would read its parent's answers. The
        # parent's client stays: to close it might wait for a lock that a thread of the parent held.
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = self._new_client()
        return self._clients[process]

    def _new_client(self) -> Any:
        try:
            from openai import OpenAI, Timeout
        except ImportError as error:
            raise ImproperlyConfigured(
                f"{type(self).__name__} needs the extra embedsync[openai]: pip install 'openai>=2'"
            ) from error
        try:
            client = OpenAI(
                base_url=self.base_url,
                api_key=self._key or "none",  # the library insists on one
                timeout=Timeout(self.timeout, connect=min(self.timeout, CONNECT_SECONDS)),
                max_retries=0,  # the ledger knows better when to try again
                default_headers=self.headers,
                http_client=client_with(self.timeout),
            )
            # Not left to the client itself: the order in which Python clears circles is open, and
            # its sockets would warn that nobody has closed them.
            weakref.finalize(self, client.close).atexit = False
        except Exception as error:
            raise ImproperlyConfigured(
                f"No client of {self.base_url} could be made: check base_url, and the proxies and"
                f" certificates that the environment names ({type(error).__name__}: {error})"
            ) from error
        if self.preset not in (PRESETS["openai"], PRESETS["azure"]):
            # Of the environment, and for OpenAI alone.
            client.organization = client.project = None
        return client


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Raises ``ImproperlyConfigured``, without the value, where one cannot be sent."""
    for name, value in headers.items():
        for said in (name, value):
            if not (isinstance(said, str) and said.isascii() and said.strip().isprintable()):
                raise ImproperlyConfigured(
                    f"OPTIONS['headers']: {name!r} and its value must be strings of ASCII."
                )
    return {name.strip(): value.strip() for name, value in headers.items()}


@contextmanager
def explained() -> Iterator[None]:
    """Say of an error status what its provider gave as the reason, in all versions of the library.

    Some find none, others say all that there is, which may be the texts.
    """
    try:
        yield
    except Exception as error:
        if status := getattr(error, "status_code", None):
            reason = reason_of(getattr(error, "body", None))
            said = f"Error code: {status} - {reason}".removesuffix(" - ")
            # The library keeps what was answered in more than one place.
            error.args = (said,)
            vars(error).update(message=said, body=None)
            if status < 400:
                headers: Any = getattr(getattr(error, "response", None), "headers", {})
                there = headers.get("Location", "nowhere")
                raise RefusedError(f"base_url redirects to {there}: is that its place?") from error
        if getattr(error, "code", None) == OUT_OF_QUOTA:
            raise RefusedError(str(error)) from error
        raise


def reason_of(body: Any) -> str:
    """The reason in the body of an answer, without the texts that some servers repeat in it."""
    if isinstance(body, Mapping):
        body = next((body[name] for name in REASONS if name in body), "")
    if isinstance(body, list):
        return "; ".join(reason_of(item) for item in body)
    return " ".join(body.split())[:REASON_LENGTH] if isinstance(body, str) else ""


def scaled(row: list[float]) -> list[float]:
    """A vector of length 1; a zero vector stays one, which is refused later."""
    norm = math.hypot(*row) or 1.0
    return row if abs(norm - 1.0) < SAME else [value / norm for value in row]
