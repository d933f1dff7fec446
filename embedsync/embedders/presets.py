"""Presets: where servers that speak OpenAI's protocol are, and what they take in one request."""

from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured


@dataclass(frozen=True)
class Preset:
    """What is known of a provider. ``docs/providers.md`` says from where.

    ``base_url`` is empty where each user has one of their own, ``key_env`` where no key is needed.
    ``inputs`` and ``tokens`` are the most texts and tokens of a request; no ``tokens``, no limit.
    ``resizable`` are beginnings of the names of models that are told how many dimensions to return,
    in the field ``dimensions_field``. One that ``takes_prompt`` is sent a prompt in a field of its
    own; for others it is put before each text.
    """

    base_url: str = ""
    key_env: str = ""
    inputs: int = 128
    tokens: int | None = None
    resizable: tuple[str, ...] = ()
    dimensions_field: str = "dimensions"
    takes_prompt: bool = False


PRESETS = {
    "openai": Preset(
        "https://api.openai.com/v1",
        "OPENAI_API_KEY",
        inputs=2048,
        tokens=300_000,
        resizable=("text-embedding-3",),
    ),
    "azure": Preset(key_env="AZURE_OPENAI_API_KEY", inputs=2048, tokens=300_000),
    "mixedbread": Preset(
        "https://api.mixedbread.com/v1",
        "MXBAI_API_KEY",
        inputs=256,
        resizable=("",),
        takes_prompt=True,
    ),
    "tei": Preset(inputs=32),
    "vllm": Preset("http://localhost:8000/v1"),
    "ollama": Preset("http://localhost:11434/v1"),
    "infinity": Preset("http://localhost:7997", inputs=2048),
    "litellm": Preset("http://localhost:4000/v1"),
}


def preset_of(provider: str | Preset) -> Preset:
    """The preset of this name. Raises ``ImproperlyConfigured`` where there is none."""
    if isinstance(provider, Preset):
        return provider
    if provider not in PRESETS:
        known = ", ".join(map(repr, PRESETS))
        raise ImproperlyConfigured(
            f"provider: there is no {provider!r}; choose of {known}. Others that speak OpenAI's"
            " protocol need base_url only."
        )
    return PRESETS[provider]
