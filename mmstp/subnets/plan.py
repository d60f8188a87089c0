"""What a subnet keeps of every tensor, and the numbers and blocks that change with it."""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..analysis.analysis import ChannelGraph, SizedCall
from ..analysis.groups import DimMap
from .attention import forward_of
from .attributes import Size, sizes_of
from .sized_calls import SIZED_OPERATORS, Call


@dataclass(frozen=True)
class Selection:
    """The positions kept along one dimension of a tensor."""

    dim: int
    positions: NDArray[np.int64] = field(repr=False)

    def __call__(self, tensor: Tensor) -> Tensor:
        """A view where the positions are the first ones, else a copy."""
        count = len(self.positions)
        if count == tensor.shape[self.dim]:
            return tensor
        if self.positions[-1] == count - 1:
            return tensor.narrow(self.dim, 0, count)
        index = torch.from_numpy(self.positions).to(tensor.device)
        return tensor.index_select(self.dim, index)

    def pad(self, tensor: Tensor, size: int) -> Tensor:
        """The inverse: a tensor with ``size`` positions along the dimension, zero elsewhere."""
        count = len(self.positions)
        if count == size:
            return tensor
        shape = [size if d == self.dim else n for d, n in enumerate(tensor.shape)]
        index = torch.from_numpy(self.positions).to(tensor.device)
        return tensor.new_zeros(shape).index_copy(self.dim, index, tensor)


@dataclass(frozen=True)
class SubnetPlan:
    """A subnet in terms of a model's tensors.

    Attributes:
        tensors: By state-dict key, what is kept along the dimensions that are narrowed.
        sizes: By module path, the attributes that have another value.
        calls: By module path, the sizes that the calls of its forward take, for each way
            through it.
        skipped: Paths of blocks that are left out.
        statistics: Running statistics that the subnet has for itself, by state-dict key.
    """

    tensors: Mapping[str, tuple[Selection, ...]]
    sizes: Mapping[str, Mapping[str, Size]]
    calls: Mapping[str, tuple[tuple[Call, ...], ...]]
    skipped: frozenset[str]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def narrow(self, key: str, tensor: Tensor) -> Tensor:
        """The part of a tensor that belongs to the subnet."""
        for selection in self.tensors.get(key, ()):
            tensor = selection(tensor)
        return tensor


DENSE = SubnetPlan({}, {}, {}, frozenset())


def sized_calls(
    model: nn.Module, *traced: Sequence[SizedCall]
) -> dict[str, tuple[tuple[SizedCall, ...], ...]]:
    """For every module that gives sizes of channels to operators, all such calls of its forward.

    A module that is called several times has to make the same calls each time; where it does not
    (one that layers of different heads share), they count as calls of the module around it. Calls
    inside a module with a forward of its own (`register_forward`) are left out: they are not those
    of the trace.

    Args:
        model: The dense model.
        traced: The calls of one trace or several, with inputs of other sizes.

    Returns:
        By path, the ways through the forward in these traces that differ.
    """
    own = {path for path, module in model.named_modules() if forward_of(module) is not None}
    found = [
        [c for c in calls if c.operator in SIZED_OPERATORS and own.isdisjoint(c.paths)]
        for calls in traced
    ]
    times = [_each_time(calls) for calls in found]

    @functools.cache
    def same_each_time(path: str) -> bool:
        return all(
            _same_way(first, other)
            for time in times
            for first, *others in [time.get(path, [[]])]
            for other in others
        )

    callers = {
        next(path for path in (*reversed(call.paths), '') if same_each_time(path))
        for call in itertools.chain(*found)
        if call.runs or call.counts
    }
    ways: dict[str, tuple[tuple[SizedCall, ...], ...]] = {}
    for path in callers:
        for time in times:
            way = tuple(time.get(path, [[]])[0])
            if not any(_same_way(way, other) for other in ways.get(path, ())):
                ways[path] = (*ways.get(path, ()), way)
    return ways


def _each_time(calls: Sequence[SizedCall]) -> dict[str, list[list[SizedCall]]]:
    """By module, the calls in each of its forwards."""
    times: dict[str, dict[str, list[SizedCall]]] = defaultdict(lambda: defaultdict(list))
    for call in calls:
        times['']['once'].append(call)
        for path, key in call.modules:
            if path:
                times[path][key].append(call)
    return {path: list(found.values()) for path, found in times.items()}


def _same_way(first: Sequence[SizedCall], second: Sequence[SizedCall]) -> bool:
    return len(first) == len(second) and all(map(_alike, first, second))


def _alike(a: SizedCall, b: SizedCall) -> bool:
    """Whether both take the same sizes in every architecture; batch and space may differ."""
    return (
        (a.operator, a.runs) == (b.operator, b.runs)
        and len(a.dims) == len(b.dims)
        and all(map(_same, a.dims, b.dims))
        and all(x == y or dim is None for x, y, dim in zip(a.sizes, b.sizes, a.dims, strict=True))
    )


def _same(first: DimMap | None, second: DimMap | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first.group, second.group) and np.array_equal(first.unit, second.unit)


def plan_subnet(
    model: nn.Module,
    graph: ChannelGraph,
    calls: Mapping[str, Sequence[Sequence[SizedCall]]],
    aliases: Mapping[str, str],
    units: Sequence[int],
    skipped: Iterable[str],
) -> SubnetPlan:
    """Works out what is left of every tensor.

    Args:
        model: The dense model.
        graph: Its analysis.
        calls: `sized_calls` of the two.
        aliases: Further state-dict keys of shared tensors, and the key each is known by.
        units: Units kept of every group.
        skipped: Paths of the blocks left out.
    """
    dims, modules = graph.dims, dict(model.named_modules(remove_duplicate=False))
    tensors: dict[str, tuple[Selection, ...]] = {}
    kept: dict[str, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for key in [*dims, *aliases]:
        path, _, name = key.rpartition('.')
        selections = []
        for dim, dim_map in dims[aliases.get(key, key)].items():
            positions = dim_map.kept(units)
            if len(positions) < len(dim_map.group):
                selections.append(Selection(dim, positions))
                kept[path][name][dim] = positions
        if selections:
            tensors[key] = tuple(selections)
    sizes = {
        path: changed
        for path, narrowed in kept.items()
        if (changed := sizes_of(modules[path], narrowed))
    }
    gone = frozenset(skipped)
    supplied = {
        path: tuple(
            tuple(_call(call, units) for call in way if gone.isdisjoint(call.paths)) for way in ways
        )
        for path, ways in calls.items()
        if tensors and gone.isdisjoint(_and_parents(path))
    }
    return SubnetPlan(tensors, sizes, supplied, gone)


def _call(call: SizedCall, units: Sequence[int]) -> Call:
    """The sizes of a call in one architecture."""
    name = SIZED_OPERATORS[call.operator]
    if not call.runs and not call.counts:
        return Call(name)
    kept = tuple(None if dim is None else len(dim.kept(units)) for dim in call.dims)
    return Call(name, call.sizes, kept, call.runs)


def _and_parents(path: str) -> set[str]:
    parts = path.split('.')
    return {'.'.join(parts[:n]) for n in range(1, len(parts) + 1)}
