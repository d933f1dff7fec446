"""Voyage AI, which speaks OpenAI's protocol but for two fields (``embedsync[openai]``)."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured

from embedsync.embedders.openai import OpenAIEmbedder
from embedsync.embedders.presets import Preset

# Of the texts of a request, by the beginnings of models' names: the first that fits counts.
TOKENS = {
    "voyage-4-lite": 1_000_000,
    "voyage-3.5-lite": 1_000_000,
    "voyage-4-large": 120_000,
    "voyage-4": 320_000,
    "voyage-3.5": 320_000,
    "": 120_000,
}
RESIZABLE = ("voyage-4", "voyage-3.5", "voyage-3-large", "voyage-code-3")


class VoyageEmbedder(OpenAIEmbedder):
    """Models of Voyage AI, which are told whether a text is a document or a query.

    Options are those of ``OpenAIEmbedder``, without ``provider``; the key is in ``VOYAGE_API_KEY``.
    """

    def __init__(self, *, model: str, dimensions: int, **options: Any) -> None:
        if "provider" in options:
            raise ImproperlyConfigured("OPTIONS['provider'] is an option of OpenAIEmbedder alone.")
        preset = Preset(
            "https://api.voyageai.com/v1",
            "VOYAGE_API_KEY",
            inputs=1000,
            tokens=next(most for name, most in TOKENS.items() if model.startswith(name)),
            resizable=RESIZABLE,
            dimensions_field="output_dimension",
        )
        super().__init__(model=model, dimensions=dimensions, provider=preset, **options)

    def _extra(self, *, query: bool) -> dict[str, Any]:
        return {"input_type": "query" if query else "document", **super()._extra(query=query)}
