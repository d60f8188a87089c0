"""A subnet in terms of its network's tensors: what is kept of each, and what changes with them."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..analysis.analysis import ChannelGraph
from ..analysis.blocks import is_within
from ..analysis.groups import DimMap
from ..analysis.handing_on import HandsOn
from ..analysis.records import SizedCall
from ..foreign import own_tensors
from .attributes import Attribute, attributes_of, holder
from .sized_calls import Ways


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """In which order its dimensions lie in memory: channels last, or as they are counted."""
    if tensor.dim() != 4 or tensor.is_contiguous():
        return torch.contiguous_format
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


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
        index = self._index(tensor)
        if memory_format_of(tensor) is torch.channels_last:
            # of the tensor as it lies in memory: what comes out lies there in the same order
            dim = (0, 3, 1, 2)[self.dim]
            return tensor.movedim(1, 3).index_select(dim, index).movedim(3, 1)
        return tensor.index_select(self.dim, index)

    def pad(self, tensor: Tensor, size: int) -> Tensor:
        """The inverse: a tensor with ``size`` positions along the dimension, zero elsewhere."""
        count = len(self.positions)
        if count == size:
            return tensor
        shape = [size if d == self.dim else n for d, n in enumerate(tensor.shape)]
        return tensor.new_zeros(shape).index_copy(self.dim, self._index(tensor), tensor)

    def _index(self, tensor: Tensor) -> Tensor:
        """The positions, where the tensor is."""
        if tensor.device.type == 'cpu' or type(tensor) not in (Tensor, nn.Parameter):
            return torch.from_numpy(self.positions).to(tensor.device)  # a trace's are not kept
        return _uploaded(self.positions.tobytes(), tensor.device)


@functools.lru_cache(maxsize=4096)
def _uploaded(positions: bytes, device: torch.device) -> Tensor:
    """Positions on a device, kept: an upload waits until the device has done all it was given."""
    with torch.inference_mode(False):  # they are kept for backward passes too
        return torch.from_numpy(np.frombuffer(positions, np.int64).copy()).to(device)


@dataclass(frozen=True)
class SubnetPlan:
    """A subnet in terms of a model's tensors. For a ResNet's ``layer1.0.conv2`` at half width::

        tensors     {'layer1.0.conv2.weight': (keep 32 along 0, keep 32 along 1), …}
        attributes  {'layer1.0.conv2': {'in_channels': 32, 'out_channels': 32, 'groups': 1}, …}
        calls       {}, for nothing in it is given a number of channels by Python
        skipped     {'layer1.2': {'argument': ['x']}}

    Attributes:
        tensors: By state-dict key, what is kept along the dimensions that are narrowed.
        attributes: By module path, the attributes of modules some of whose tensors are narrowed.
        calls: By module path, the sized calls of its forward, for each way through it.
        skipped: By path of a block that is left out, what is returned instead (`HandsOn`).
        norm_statistics: Running statistics that the subnet has for itself, by state-dict key.
    """

    tensors: Mapping[str, tuple[Selection, ...]]
    attributes: Mapping[str, Mapping[str, Attribute]]
    calls: Mapping[str, Ways]
    skipped: Mapping[str, HandsOn]
    norm_statistics: Mapping[str, Tensor] = field(default_factory=dict)

    @functools.cached_property
    def narrowed(self) -> frozenset[str]:
        """Paths of the modules in which a tensor is narrowed, at any depth."""
        return frozenset(
            key[:end] for key in self.tensors for end, sign in enumerate(key) if sign == '.'
        )

    def narrow(self, key: str, tensor: Tensor) -> Tensor:
        """The part of a tensor that belongs to the subnet."""
        for selection in self.tensors.get(key, ()):
            tensor = selection(tensor)
        return tensor

    def kept(self, key: str, tensor: Tensor) -> Tensor:
        """Which entries of a dense tensor belong to the subnet: booleans of its shape."""
        if is_within(key, self.skipped):
            return torch.zeros_like(tensor, dtype=torch.bool)
        kept = self.narrow(key, torch.ones_like(tensor, dtype=torch.bool))
        for selection in reversed(self.tensors.get(key, ())):
            kept = selection.pad(kept, tensor.shape[selection.dim])
        return kept


DENSE = SubnetPlan({}, {}, {}, {})


def plan_subnet(
    model: nn.Module, graph: ChannelGraph, units: Sequence[int], skipped: Iterable[str]
) -> SubnetPlan:
    """Works out what is left of every tensor.

    Args:
        model: The dense model, of which no subnet is active.
        graph: Its analysis.
        units: Units kept of every group.
        skipped: Paths of the blocks left out.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: dict[str, tuple[Selection, ...]] = {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for key in [*graph.dims, *graph.aliases]:
        path, _, name = key.rpartition('.')
        shape, selections = list(own_tensors(modules[path])[name].shape), []
        for dim, dim_map in graph.dims[graph.aliases.get(key, key)].items():
            positions = dim_map.kept(units)
            if len(positions) < shape[dim]:
                selections.append(Selection(dim, positions))
                shape[dim] = len(positions)
        if selections:
            tensors[key] = tuple(selections)
            layer, own = holder(key)
            shapes[layer][own] = tuple(shape)
    results = {block.path: block.hands_on for chain in graph.chains for block in chain.skippable}
    gone = {path: results[path] for path in skipped}
    return SubnetPlan(
        tensors,
        {
            path: attributes
            for path, narrow in shapes.items()
            if (attributes := attributes_of(modules[path], narrow))
        },
        {
            path: tuple(
                tuple(_in_subnet(call, units) for call in way if gone.keys().isdisjoint(call.paths))
                for way in ways
            )
            for path, ways in graph.ways.items()
            if tensors and not is_within(path, gone)
        },
        gone,
    )


def _in_subnet(call: SizedCall[DimMap], units: Sequence[int]) -> SizedCall[int]:
    """The call with the numbers of a subnet; only their count where they stay the code's."""
    if not call.runs and not call.counts:
        return SizedCall(call.supplies, dims=(None,) * len(call.dims))
    return replace(call.resolve(lambda dim: len(dim.kept(units))), modules=(), made=False)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model, shared ones under every key."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
