"""A check of models with several declarations: which is searched where none is named?"""

from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Tags, Warning, register

from embedsync.checks.declarations import is_default
from embedsync.declaration import sidecars_by_name


@register(Tags.models)
def check_choice(**_: Any) -> list[CheckMessage]:
    """Models whose searches have to name one of their declarations."""
    found: list[CheckMessage] = []
    for model in apps.get_models():
        named = sidecars_by_name(model)
        if len(named) > 1 and not any(map(is_default, named.values())):
            several = ", ".join(named)
            found.append(
                Warning(
                    f"{model._meta.label} has several embeddings, {several}, and none of them has"
                    " default=True: a search that does not name one raises ValueError.",
                    hint="Give default=True to the one that is to be searched then. If each search"
                    " is to name its own, silence this.",
                    obj=model,
                    id="embedsync.W036",
                )
            )
    return found
