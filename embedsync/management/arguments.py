"""Types of arguments that several commands take."""

import math


def seconds(text: str) -> float:
    """A number of seconds above zero."""
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError
    return value


def whole_number(text: str) -> int:
    """A whole number above zero."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def port(text: str) -> int:
    """A number of a TCP port."""
    if not 0 < (value := int(text)) < 65536:
        raise ValueError
    return value
