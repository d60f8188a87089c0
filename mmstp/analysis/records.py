"""What a walk writes down about the operators of a trace.

While a trace is walked, a record says of each size which *ids* it counts. When the groups are
known, `resolve` gives the same record with what became of the ids: a `DimMap`. A sized call is
resolved once more for every subnet, to numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import fx

D = TypeVar('D')
E = TypeVar('E')


@dataclass(frozen=True)
class Cost(Generic[D]):
    """The cost of an operator or the size of a parameter: ``factor`` times the sizes of ``dims``.

    ``kind`` is ``'matmul'``, ``'output'`` (elements of its result), ``'bias'``, ``'norm'``,
    ``'activation'``, ``'add'`` or ``'pool'``, in elements or multiply-adds of one forward of the
    traced inputs; or ``'parameter'``. ``factor`` is the product of the sizes that hold no channels.
    ``paths`` are the modules in whose forward it arises (that have the parameter), outermost first.
    """

    kind: str
    factor: int
    dims: tuple[D, ...] = ()
    paths: tuple[str, ...] = ()

    def resolve(self, of: Callable[[D], E]) -> Cost[E]:
        """The same with ``of(dim)`` for every dim."""
        return Cost(self.kind, self.factor, tuple(map(of, self.dims)), self.paths)


@dataclass(frozen=True)
class SizedCall(Generic[D]):
    """A call of an operator that Python gives sizes: ``x.reshape(n, heads, c // heads)``.

    ``supplies`` says how they are given: a key of `mmstp.subnets.sized_calls.SUPPLY`. ``sizes`` are
    the dense network's, of the output's dimensions or of the parts of a split; ``dims`` what each
    counts, in a subnet how many that are (None: no channels); ``runs`` which dimensions of a
    reshape's input become which of its output; ``modules`` those in whose forward it is made,
    outermost first, with a key for each of their calls; ``made`` whether the tensor is worked out
    of constants of one value alone, whose sizes are the code's where they count no channels. In a
    subnet it is plain types, as it goes into files (`to_list`).
    """

    supplies: str
    sizes: tuple[int, ...] = ()
    dims: tuple[D | None, ...] = ()
    runs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    modules: tuple[tuple[str, str], ...] = ()
    made: bool = False

    def resolve(self, of: Callable[[D], E | None]) -> SizedCall[E]:
        """The same with ``of(dim)`` for every dim."""
        dims = tuple(None if dim is None else of(dim) for dim in self.dims)
        alone = self.made and all(dim is None for dim in dims)
        runs = () if alone else self.runs
        return SizedCall(self.supplies, self.sizes, dims, runs, self.modules, self.made)

    @property
    def counts(self) -> bool:
        """Whether one of the sizes counts channels."""
        return any(dim is not None for dim in self.dims)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the modules, outermost first."""
        return tuple(path for path, _ in self.modules)

    def alike(self, other: SizedCall[D]) -> bool:
        """Whether both take the same sizes in every architecture; batch and space may differ."""
        return self.key == other.key

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that are alike."""
        pairs = zip(self.sizes, self.dims, strict=False)
        counted = tuple(size for size, dim in pairs if dim is not None)
        return self.supplies, self.dims, self.runs, counted

    def to_list(self) -> list[Any]:
        """Lists, strings and whole numbers; the modules are left out."""
        runs = [[list(before), list(after)] for before, after in self.runs]
        return [self.supplies, list(self.sizes), list(self.dims), runs]

    @classmethod
    def from_list(cls, fields: Sequence[Any]) -> SizedCall[int]:
        """Reads what `to_list` writes."""
        supplies, sizes, dims, runs = fields
        pairs = tuple((tuple(before), tuple(after)) for before, after in runs)
        return SizedCall(supplies, tuple(sizes), tuple(dims), pairs)


@dataclass(frozen=True)
class ChannelReduction(Generic[D]):
    """An operator over channels: what it gives for one depends on which others there are.

    ``dims`` says what the dimensions of its first argument hold that it goes over.
    """

    node: fx.Node
    dims: Mapping[int, D]

    def resolve(self, of: Callable[[D], E | None]) -> ChannelReduction[E]:
        """The same with the dims for which ``of(dim)`` is not None."""
        found = {place: kept for place, dim in self.dims.items() if (kept := of(dim)) is not None}
        return ChannelReduction(self.node, found)


def aligned_runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Splits the dimensions of two shapes of one size into the smallest runs of equal product."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(a), j + len(b)
        while (left := math.prod(old[d] for d in a)) != (right := math.prod(new[d] for d in b)):
            if left < right:
                a.append(i)
                i += 1
            else:
                b.append(j)
                j += 1
        runs.append((a, b))
    return runs
