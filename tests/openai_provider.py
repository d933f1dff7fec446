"""Scripted servers that speak the protocols of OpenAI and Cohere, and have faults on demand."""

import base64
from array import array

from embedsync.embedders.hashing import HashingEmbedder
from embedsync.embedders.openai import OpenAIEmbedder
from tests.provider import Provider

KEY = "sk-test-0123456789abcdef"
JSON = {"Content-Type": "application/json"}


class OpenAIProvider(Provider):
    """``calls`` are the bodies of requests; ``change(items)`` what it answers them with.

    Vectors are ``HashingEmbedder``'s, ``length`` long.
    """

    length = 1.0
    knows_base64 = True

    def __init__(self, server):
        super().__init__(server)
        self.change = lambda items: items

    @property
    def url(self):
        return f"{super().url}v1"

    @property
    def texts(self):
        return [body["input"] for body in self.calls]

    def works(self, body):
        items = self.change(
            [
                {"object": "embedding", "index": n, "embedding": self.vector(text, body)}
                for n, text in enumerate(body["input"])
            ]
        )
        words = sum(len(text.split()) for text in body["input"])
        usage = {"prompt_tokens": words, "total_tokens": words}
        return 200, JSON, {"object": "list", "model": body["model"], "data": items, "usage": usage}

    def vector(self, text, body):
        values = [self.length * value for value in self._embedder.embed_documents([text])[0]]
        values = values[: body.get("dimensions")]
        if self.knows_base64 and body.get("encoding_format") == "base64":
            return encoded(values)
        return values

    def fails(self, status, message="no", **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        said = {"error": {"message": message, "type": "t", "param": None, "code": None}}
        self.answer = lambda body: (status, {**JSON, **names}, said)

    def refuses(self, word, status=400):
        """Answer so as long as one of the texts has this word in it."""

        def answer(body):
            if any(word in text for text in body["input"]):
                message = "This model's maximum context length is 8192 tokens."
                return status, JSON, {"error": {"message": message}}
            return self.works(body)

        self.answer = answer


def embedder_of(server, /, **options):
    given = {"model": "hashed", "dimensions": 64, "base_url": server.url, "api_key": KEY}
    return OpenAIEmbedder(**{**given, **options})


class KeepAlive(OpenAIProvider):
    protocol = "HTTP/1.1"


class CohereProvider(Provider):
    @property
    def url(self):
        return f"{super().url}v2"

    def works(self, body):
        rows = HashingEmbedder(model="", dimensions=64).embed_documents(body["texts"])
        meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 7}}
        return 200, JSON, {"id": "1", "embeddings": {"float": rows}, "meta": meta}


def encoded(values):
    return base64.b64encode(array("f", values).tobytes()).decode()
