"""Markdown as HTML, and as the plain words of it."""

from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

# Without HTML of an author's own, so that what comes out is safe.
PARSER = MarkdownIt("commonmark", {"html": False})
WORDS = {"text", "code_inline"}
BREAKS = {"softbreak", "hardbreak"}


def as_html(markdown: str) -> SafeString:
    return mark_safe(PARSER.render(markdown))  # noqa: S308


def as_words(markdown: str) -> str:
    """The words of a text on one line, without its marks."""
    blocks = []
    for block in PARSER.parse(markdown):
        if block.type in {"fence", "code_block"}:
            blocks.append(block.content)
        parts = block.children or []
        words = [
            part.content if part.type in WORDS else " " if part.type in BREAKS else ""
            for part in parts
        ]
        blocks.append("".join(words))
    return " ".join(" ".join(blocks).split())
