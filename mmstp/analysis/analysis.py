"""What the traces of a model tell about its channels, blocks and costs."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from .blocks import Chain, find_chains
from .groups import DimMap, Group, find_groups
from .ids import Ids, Value
from .records import ChannelReduction, Cost
from .trace import Trace, trace
from .walk import Walk, cost_of
from .ways import Way, find_ways


@dataclass(frozen=True)
class Traced:
    """One trace: its operators over free channels; of every output the dims that hold such."""

    trace: Trace
    reductions: tuple[ChannelReduction[DimMap], ...]
    outputs: tuple[Mapping[int, DimMap], ...]


class Layer(NamedTuple):
    """A layer that makes channels, with its place in the trace and its output's spatial shape."""

    order: int
    path: str
    resolution: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGraph:
    """Coupled channels, skippable blocks and costs of a model; nothing about training.

    Attributes:
        groups: The free groups, in order of execution.
        dims: For every tensor (state-dict key) the dimensions that hold free channels.
        aliases: Further keys of tensors with free channels, and the key each has in ``dims``.
        chains: Blocks that may be skipped.
        costs: One row per operator and per parameter.
        ways: By module path, the sized calls of its forward, for each way through it.
        layers: Layers that make channels, those whose channels have to stay among them.
        fixed: Layers whose channels have to stay, with the reason.
        unskippable: Modules with a way around them that have to stay, with the reason.
        unknown: Operators without a handler, with the modules that call them.
        traced: The traces: the first is of the example inputs.
    """

    groups: tuple[Group, ...]
    dims: Mapping[str, Mapping[int, DimMap]]
    aliases: Mapping[str, str]
    chains: tuple[Chain, ...]
    costs: tuple[Cost[DimMap], ...]
    ways: Mapping[str, tuple[Way, ...]]
    layers: tuple[Layer, ...]
    fixed: Mapping[str, str]
    unskippable: Mapping[str, str]
    unknown: Mapping[str, Sequence[str]]
    traced: tuple[Traced, ...]

    @classmethod
    def from_model(
        cls, model: nn.Module, inputs: Sequence[Any], fix_outputs: bool = True
    ) -> ChannelGraph:
        """Traces and analyses ``model(*inputs)``.

        Args:
            model: Any module that `torch.export` can follow; left as it was.
            inputs: Its positional arguments.
            fix_outputs: Keep the channels of the model's outputs whole.

        Raises:
            TraceError: If the model cannot be exported.
        """
        return cls.from_traces(model, [trace(model, inputs)], fix_outputs)

    @classmethod
    def from_traces(
        cls,
        model: nn.Module,
        traces: Sequence[Trace],
        fix_outputs: bool = True,
        groups_fixed: Mapping[str, str] | None = None,
        blocks_fixed: Mapping[str, str] | None = None,
        own_forwards: Collection[str] = (),
    ) -> ChannelGraph:
        """Analyses a model that has been traced, with inputs of one size or several.

        Args:
            model: The model.
            traces: What `trace` returned for it. Costs, blocks and the order of layers are those
                of the first.
            fix_outputs: Keep the channels of the model's outputs whole.
            groups_fixed: Names of groups that have to stay, with the reason.
            blocks_fixed: Paths of blocks that have to stay, with the reason.
            own_forwards: Paths of modules that run another forward than the traced one when they
                are narrow.
        """
        walk = Walk(model, traces, fix_outputs)
        chains, unskippable = find_chains(model, walk, blocks_fixed or {})
        groups = find_groups(walk, groups_fixed or {})

        def free_dims(lines: Iterable[Ids | None]) -> dict[int, DimMap]:
            found = enumerate(map(groups.free, lines))
            return {dim: free for dim, free in found if free is not None}

        lines = {
            key: [v.ids_along(dim) for v, dim in value.all_dims]
            for key, value in walk.tensors.items()
        }
        dims = {key: free for key, own in lines.items() if (free := free_dims(own))}
        calls = [[call.resolve(groups.free) for call in one.calls] for one in walk.walked]
        costs = [
            cost.resolve(groups.dim_map)
            for cost in (*walk.walked[0].costs, *_parameters(model, walk))
        ]
        traced = []
        for one in walk.walked:
            reductions = [reduction.resolve(groups.free) for reduction in one.reductions]
            over_free = tuple(reduction for reduction in reductions if reduction.dims)
            outputs = [[v.ids_along(dim) for v, dim in value.all_dims] for value in one.outputs]
            traced.append(Traced(one.trace, over_free, tuple(map(free_dims, outputs))))
        return cls(
            groups=groups.groups,
            dims=dims,
            aliases={key: first for key, first in walk.aliases.items() if first in dims},
            chains=tuple(chains),
            costs=tuple(costs),
            ways=find_ways(calls, own_forwards),
            layers=(
                *(Layer(p.order, p.path, p.resolution) for p in walk.producers),
                *(Layer(order, path, ()) for order, path, _ in walk.layers_kept),
            ),
            fixed={**{path: reason for _, path, reason in walk.layers_kept}, **groups.fixed},
            unskippable=unskippable,
            unknown=dict(walk.unknown),
            traced=tuple(traced),
        )


def _parameters(model: nn.Module, walk: Walk) -> Iterator[Cost[Ids]]:
    """The sizes of all parameters, those that no trace meets too."""
    for key, parameter in model.named_parameters():
        value = walk.tensors.get(key, Value(tuple(parameter.shape)))
        paths = itertools.accumulate(key.split('.')[:-1], '{}.{}'.format)
        yield cost_of('parameter', value.all_dims, 1, paths)
