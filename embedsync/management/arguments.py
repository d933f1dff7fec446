"""Types of arguments that several commands take. What is wrong with one is said in words."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(
    kind: Callable[[str], Number], words: str, is_right: Callable[[Number], bool]
) -> Callable[[str], Number]:
    """A type of arguments: numbers of a kind that are right, which ``words`` tell."""

    def parse(text: str) -> Number:
        with suppress(ValueError):
            if is_right(value := kind(text)):
                return value
        raise ArgumentTypeError(f"{text!r} is not {words}")

    return parse


seconds = number(float, "a number of seconds above 0", lambda value: 0 < value < math.inf)
from_zero = number(float, "a number from 0", lambda value: value >= 0)
whole_number = number(int, "a whole number from 1", lambda value: value >= 1)
port = number(int, "a port, 1 to 65535", lambda value: 0 < value < 65536)
