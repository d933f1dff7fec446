"""Cohere's own protocol, through the client of the openai library (``embedsync[openai]``)."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.base import EmbedderError
from embedsync.embedders.openai import Answer, OpenAIEmbedder
from embedsync.embedders.presets import Preset

COHERE = Preset(
    "https://api.cohere.com/v2",
    "CO_API_KEY",
    inputs=96,
    resizable=("embed-v4",),
    dimensions_field="output_dimension",
)


class CohereEmbedder(OpenAIEmbedder):
    """Models of Cohere, which are told whether a text is a document or a query.

    Options are those of ``OpenAIEmbedder``, without ``provider``; the key is in ``CO_API_KEY``.
    This is Cohere's own protocol, because the one like OpenAI's that it also has knows no query.
    """

    def __init__(self, *, model: str, dimensions: int, **options: Any) -> None:
        if "provider" in options:
            raise ImproperlyConfigured("OPTIONS['provider'] is an option of OpenAIEmbedder alone.")
        super().__init__(model=model, dimensions=dimensions, provider=COHERE, **options)

    def _rows(self, client: Any, texts: list[str], *, query: bool) -> Answer:
        prompt = self.query_prompt if query else self.document_prompt
        body = {
            "model": self.model,
            "texts": [prompt + text for text in texts],
            "input_type": "search_query" if query else "search_document",
            "embedding_types": ["float"],
            **self._extra(query=query),
        }
        answer: Any = client.post("/embed", body=body, cast_to=object)
        rows = answer["embeddings"]["float"]
        if len(rows) != len(texts):
            raise EmbedderError(
                f"{self.base_url} returned {len(rows)} vectors for {len(texts)} texts."
            )
        units = (answer.get("meta") or {}).get("billed_units") or {}
        return rows, units.get("input_tokens")
