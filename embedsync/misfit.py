"""What of a project's settings does not fit its vectors; no model is loaded to find out."""

from django.core.exceptions import ImproperlyConfigured

from embedsync.conf import settings
from embedsync.declaration import EmbeddingModel, declaration_of
from embedsync.embedders import get_embedder


def settings_error(sidecar: type[EmbeddingModel], maker: str) -> str:
    """What is wrong with the settings of a sidecar's embedder, ``""`` where nothing is.

    ``maker`` is the fingerprint of the one that made its vectors, ``""`` where there are none.
    """
    alias = declaration_of(sidecar).embedder
    try:
        settings.embedder(alias)
    except ImproperlyConfigured as error:
        return str(error)
    if not maker:
        return ""
    try:
        now = get_embedder(alias).fingerprint
    except ImproperlyConfigured:
        return ""  # embedsync.E002 says so
    if now == maker:
        return ""
    return (
        "its vectors were made by another embedder than the settings now name: put these back, or"
        f' see "Another model" in docs/search.md. (There: {maker}. Now: {now}.)'
    )
