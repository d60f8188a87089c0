"""A union-find over whole arrays of numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class UnionFind:
    """Ids that can be tied; what remains apart is apart.

    ``unite([0, 1, 2], [5, 5, 7])`` leaves the classes {0, 1, 5} and {2, 7}; the least of a class
    stands for it.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Ids:
        """New ids, each on its own."""
        ids = np.arange(len(self._parent), len(self._parent) + count)
        self._parent = np.concatenate([self._parent, ids])
        return ids

    def find(self, ids: Ids) -> Ids:
        """The representative of each id."""
        roots = self._parent[ids]
        while not np.array_equal(higher := self._parent[roots], roots):
            roots = higher
        self._parent[ids] = roots
        return roots

    def roots(self, ids: Ids) -> list[int]:
        """The representatives of these ids, each once."""
        found: list[int] = np.unique(self.find(ids)).tolist()
        return found

    def unite(self, first: Ids, second: Ids) -> None:
        """Ties two broadcastable arrays of ids element by element."""
        first, second = np.broadcast_arrays(first, second)
        first, second = first.reshape(-1), second.reshape(-1)
        while True:
            a, b = self.find(first), self.find(second)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            # one parent per root and round; pairs that lost out differ again in the next round
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def tie(self, ids: Ids, dims: Iterable[int]) -> Ids:
        """Makes an array constant along ``dims``; returns it with size 1 there."""
        for dim in dims:
            self.unite(ids, ids.take([0], axis=dim))
            ids = ids.take([0], axis=dim)
        return ids

    def compress(self, factor: Ids) -> Ids:
        """Representatives, of size 1 along every dimension where they are all the same."""
        roots = self.find(factor)
        for dim in varying(roots):
            first = roots.take([0], axis=dim)
            if (roots == first).all():
                roots = first
        return roots


def varying(factor: Ids) -> list[int]:
    """The dimensions along which a factor varies."""
    return [dim for dim, size in enumerate(factor.shape) if size > 1]


def overlap(first: Ids, second: Ids) -> bool:
    """Whether two factors vary along one dimension."""
    return not set(varying(first)).isdisjoint(varying(second))
