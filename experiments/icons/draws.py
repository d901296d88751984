"""Random choices that are the same on every machine, by a key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_WORDS_AT_ONCE = 4096


def share(*key: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the key."""
    digest = hashlib.sha256("\0".join(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Draws:
    """A stream of choices that depends on nothing but its key.

    Only the generator's raw words are used: numpy keeps those from version to version, unlike its distributions.
    """

    def __init__(self, *key: str) -> None:
        digest = hashlib.sha256("\0".join(key).encode()).digest()
        self._philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """Return a whole number from 0 to `bound` - 1; its bias is below bound / 2**64."""
        if not self._words:
            self._words = self._philox.random_raw(_WORDS_AT_ONCE)[::-1].tolist()
        return self._words.pop() % bound

    def one_of(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.below(len(options))]

    def some_of(self, options: Sequence[T], count: int) -> list[T]:
        """Return `count` different ones of the options, in a random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def weighted(self, weights: Sequence[int]) -> int:
        """Return the index of a weight, chosen in proportion to them; weights are whole numbers."""
        point = self.below(sum(weights))
        for index, weight in enumerate(weights):
            if point < weight:
                return index
            point -= weight
        raise AssertionError("the weights sum to more than the point")
