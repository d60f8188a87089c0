"""What the traces of a model tell about its channels, blocks and costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from .blocks import Run, find_runs
from .groups import DimMap, FoundGroups, Group, find_groups, kind_of
from .records import ChannelReduction, Cost
from .trace import Trace, trace
from .walk import Walk, Walked
from .ways import Way, find_ways


@dataclass(frozen=True)
class Traced:
    """One trace, with what it tells beside the groups.

    Attributes:
        trace: The trace.
        reductions: Operators over free channels.
        outputs: For every output of the model the dimensions that hold free channels.
    """

    trace: Trace
    reductions: tuple[ChannelReduction[DimMap], ...]
    outputs: tuple[Mapping[int, DimMap], ...]


@dataclass(frozen=True)
class ChannelGraph:
    """Coupled channels, skippable blocks and costs of a model; nothing about training.

    Attributes:
        groups: The free groups, in order of execution.
        dims: For every tensor (state-dict key) the dimensions that hold free channels.
        aliases: Further keys of tensors with free channels, and the key each has in ``dims``.
        runs: Blocks that may be skipped.
        costs: One row per operator and per parameter.
        ways: By module path, the sized calls of its forward, for each way through it.
        fixed: Layers whose channels have to stay, with the reason.
        unknown: Operators without a handler, with the modules that call them.
        traced: The traces: the first is of the example inputs.
    """

    groups: tuple[Group, ...]
    dims: Mapping[str, Mapping[int, DimMap]]
    aliases: Mapping[str, str]
    runs: tuple[Run, ...]
    costs: tuple[Cost[DimMap], ...]
    ways: Mapping[str, tuple[Way, ...]]
    fixed: Mapping[str, str]
    unknown: Mapping[str, Sequence[str]]
    traced: tuple[Traced, ...]

    @classmethod
    def from_model(
        cls, model: nn.Module, inputs: Sequence[Tensor], fix_outputs: bool = True
    ) -> ChannelGraph:
        """Traces and analyses ``model(*inputs)``.

        Args:
            model: Any module that `torch.export` can follow; left as it was.
            inputs: Example inputs.
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
        freeze: Mapping[str, str] | None = None,
        own_forwards: Collection[str] = (),
    ) -> ChannelGraph:
        """Analyses a model that has been traced, with inputs of one size or several.

        Args:
            model: The model.
            traces: What `trace` returned for it. Costs, blocks and the order of layers are those
                of the first.
            fix_outputs: Keep the channels of the model's outputs whole.
            freeze: Kinds (`kind_of`) of groups and blocks, or paths of blocks, that have to stay,
                with the reason.
            own_forwards: Paths of modules that run another forward than the traced one when they
                are narrow.
        """
        freeze = freeze or {}
        walk = Walk(model, traces, fix_outputs)
        found = find_runs(model, walk, traces[0].module.graph)
        lines = {
            (key, dim): walk.ids.find(factor.reshape(-1))
            for key, value in walk.tensors.items()
            for dim in range(len(value.shape))
            if (factor := value.factor(dim)) is not None
        }
        groups = find_groups(walk, lines, found, freeze)
        dims: dict[str, dict[int, DimMap]] = defaultdict(dict)
        for (key, dim), line in lines.items():
            if (mapped := groups.free(line)) is not None:
                dims[key][dim] = mapped
        calls = [[call.resolve(groups.free) for call in one.calls] for one in walk.walked]
        return cls(
            groups=groups.groups,
            dims=dict(dims),
            aliases={key: first for key, first in walk.aliases.items() if first in dims},
            runs=tuple(_without(found, freeze)),
            costs=(
                *(cost.resolve(groups.dim_map) for cost in walk.walked[0].costs),
                *_parameters(model, walk, groups),
            ),
            ways=find_ways(calls, own_forwards),
            fixed=groups.fixed,
            unknown=dict(walk.unknown),
            traced=tuple(_resolved(walk, one, groups) for one in walk.walked),
        )


def _parameters(model: nn.Module, walk: Walk, groups: FoundGroups) -> list[Cost[DimMap]]:
    """The sizes of all parameters, those that no trace meets too."""
    costs: list[Cost[DimMap]] = []
    for key, parameter in model.named_parameters():
        factor, counted = 1, []
        value = walk.tensors.get(key)
        for dim, size in enumerate(parameter.shape):
            ids = None if value is None else value.factor(dim)
            if ids is None:
                factor *= size
            else:
                counted.append(groups.dim_map(ids))
        parts = key.split('.')[:-1]
        paths = tuple('.'.join(parts[: n + 1]) for n in range(len(parts)))
        costs.append(Cost('parameter', factor, tuple(counted), paths))
    return costs


def _resolved(walk: Walk, one: Walked, groups: FoundGroups) -> Traced:
    reductions = [reduction.resolve(groups.free) for reduction in one.reductions]
    outputs = [
        {dim: walk.line(value, dim) for dim in range(len(value.shape))} for value in one.outputs
    ]
    return Traced(
        one.trace,
        tuple(reduction for reduction in reductions if reduction.dims),
        tuple(
            {dim: free for dim, line in output.items() if (free := groups.free(line)) is not None}
            for output in outputs
        ),
    )


def _without(runs: Sequence[Run], freeze: Mapping[str, str]) -> list[Run]:
    kept = [
        replace(
            run,
            skippable=tuple(
                b for b in run.skippable if freeze.keys().isdisjoint((b.path, kind_of(b.path)))
            ),
        )
        for run in runs
    ]
    return [run for run in kept if run.skippable]
