"""What a subnet keeps of every tensor, and the numbers and blocks that change with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..graph import ChannelGraph, DimMap
from .sizes import sizes_of


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


@dataclass(frozen=True)
class SubnetPlan:
    """A subnet in terms of a model's tensors.

    Attributes:
        tensors: By state-dict key, what is kept along the dimensions that are narrowed.
        sizes: By module path, the attributes that have another value.
        skipped: Paths of blocks that are left out.
    """

    tensors: Mapping[str, tuple[Selection, ...]]
    sizes: Mapping[str, Mapping[str, int]]
    skipped: frozenset[str]

    def narrow(self, key: str, tensor: Tensor) -> Tensor:
        """The part of a tensor that belongs to the subnet."""
        for selection in self.tensors.get(key, ()):
            tensor = selection(tensor)
        return tensor


@dataclass(frozen=True)
class SizedAttribute:
    """A number that a module's code holds of some channels."""

    module: str
    name: str
    dim: DimMap


def sized_attributes(model: nn.Module, graph: ChannelGraph) -> tuple[SizedAttribute, ...]:
    """Integer attributes that equal a size which the module gives to a shape operator.

    They are candidates: `verify` compares the outcome with the traced graph.
    """
    found = {}
    for sized in graph.sized_by:
        for name, value in vars(model.get_submodule(sized.module)).items():
            if type(value) is int and value == sized.size:
                found[sized.module, name] = SizedAttribute(sized.module, name, sized.dim)
    return tuple(found.values())


def plan_subnet(
    model: nn.Module,
    graph: ChannelGraph,
    attributes: Sequence[SizedAttribute],
    aliases: Mapping[str, str],
    units: Sequence[int],
    skipped: Iterable[str],
) -> SubnetPlan:
    """Works out what is left of every tensor.

    Args:
        model: The dense model.
        graph: Its analysis.
        attributes: `sized_attributes` of the two.
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
    sizes: dict[str, dict[str, int]] = {}
    for path, narrowed in kept.items():
        if changed := sizes_of(modules[path], narrowed):
            sizes[path] = changed
    for attribute in attributes:
        count = len(attribute.dim.kept(units))
        sizes.setdefault(attribute.module, {})[attribute.name] = count
    return SubnetPlan(tensors, sizes, frozenset(skipped))
