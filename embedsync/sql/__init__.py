"""The SQL of capture and queue, one statement a file."""

from functools import cache
from importlib.resources import files


@cache
def statement(name: str) -> str:
    """The text of ``<name>.sql``."""
    return files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
