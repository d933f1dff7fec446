"""Batches: texts of like length go through a network together, since padding costs like text."""

from collections.abc import Iterator, Sequence


def batches(lengths: Sequence[int], *, rows: int, tokens: int | None = None) -> Iterator[list[int]]:
    """The positions of texts that have so many tokens, the longest first.

    A batch has ``rows`` at most and ``tokens``, with its padding, at most; a single longer text is
    a batch of its own.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch:
            # The first is the longest: all others are padded to it.
            padded = (len(batch) + 1) * lengths[batch[0]]
            if len(batch) >= rows or (tokens is not None and padded > tokens):
                yield batch
                batch = []
        batch.append(position)
    if batch:
        yield batch
