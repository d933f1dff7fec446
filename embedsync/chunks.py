"""Chunks: how long texts are cut into passages, each with a vector of its own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunks:
    """Texts are cut into passages of at most ``size`` tokens, which overlap by up to ``overlap``.

    They are cut between sections, paragraphs or sentences where that is possible. ``markdown`` says
    that texts may be Markdown, whose headings, lists and code blocks count as such; plain text
    takes no harm from it.

    Raises ``ValueError`` where the numbers are wrong.
    """

    size: int
    overlap: int = 0
    markdown: bool = True

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise ValueError(
                f"Chunks: size= is a number of tokens, 1 or more, not {self.size!r}. Take at most"
                " what the model reads, 200 for example."
            )
        if type(self.overlap) is not int or not 0 <= self.overlap < self.size:
            raise ValueError(
                f"Chunks: overlap= is a number of tokens, from 0 to {self.size - 1} with"
                f" size={self.size}, not {self.overlap!r}."
            )
        if type(self.markdown) is not bool:
            raise ValueError(f"Chunks: markdown= is True or False, not {self.markdown!r}.")
