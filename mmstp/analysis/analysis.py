"""What one trace of a model tells about its channels, blocks and costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, fx, nn

from .blocks import Run, find_runs
from .groups import (
    WHOLE,
    DimMap,
    Group,
    LinearForm,
    _classes,
    _embedding,
    _group,
    _makers,
    _reasons,
    kind_of,
)
from .ids import Ids, Value
from .trace import Trace, module_stack, operator_name, trace
from .walk import Walk


@dataclass(frozen=True)
class Cost:
    """The cost of an operator or the size of a parameter: a product of sizes.

    Attributes:
        kind: ``'matmul'``, ``'bias'``, ``'norm'``, ``'activation'``, ``'add'``, ``'pool'`` in
            elements or multiply-adds of one forward of the traced inputs; ``'parameter'``.
        block: The path of the skippable block it lies in, or ''.
    """

    kind: str
    block: str
    factor: int
    forms: tuple[LinearForm, ...]


@dataclass(frozen=True)
class SizedCall:
    """A call of an operator that is given sizes, or whose output's sizes count channels.

    Attributes:
        operator: Its name in the trace.
        modules: The modules in whose forward it is made, outermost first, with a key for each
            of their calls.
        sizes: Of the output's dimensions, or of the parts of a split.
        dims: For each of the sizes what it counts; None where it counts no free channels.
        runs: Of a reshape: which dimensions of the input become which of the output.
    """

    operator: str
    modules: tuple[tuple[str, str], ...]
    sizes: tuple[int, ...]
    dims: tuple[DimMap | None, ...]
    runs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the modules, outermost first."""
        return tuple(path for path, _ in self.modules)

    def with_groups(self, known: Sequence[int]) -> SizedCall:
        """The same with other numbers of the groups."""
        dims = tuple(None if dim is None else dim.with_groups(known) for dim in self.dims)
        return replace(self, dims=dims)

    @property
    def counts(self) -> bool:
        """Whether one of the sizes counts channels that are free."""
        return any(dim is not None for dim in self.dims)


@dataclass(frozen=True)
class Statistics:
    """An operator over channels: what it gives for one depends on which others there are.

    ``dims`` says what the dimensions of its first argument hold that it goes over.
    """

    node: fx.Node
    dims: Mapping[int, DimMap]


@dataclass(frozen=True)
class ChannelGraph:
    """Coupled channels, skippable blocks and costs of a model; nothing about training.

    Attributes:
        groups: The free groups, in order of execution.
        dims: For every tensor (state-dict key) the dimensions that hold free channels.
        runs: Blocks that may be skipped.
        costs: One row per operator and per parameter.
        calls: The calls of operators that may be given sizes, in order.
        statistics: Operators over free channels.
        fixed: Layers whose channels have to stay, with the reason.
        unknown: Operators without a handler, with the modules that call them.
        outputs: For every output of the model the dimensions that hold free channels.
    """

    groups: tuple[Group, ...]
    dims: Mapping[str, Mapping[int, DimMap]]
    runs: tuple[Run, ...]
    costs: tuple[Cost, ...]
    calls: tuple[SizedCall, ...]
    statistics: tuple[Statistics, ...]
    fixed: Mapping[str, str]
    unknown: Mapping[str, Sequence[str]]
    outputs: tuple[Mapping[int, DimMap], ...]
    trace: Trace

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        inputs: Sequence[Tensor],
        fix_outputs: bool = True,
    ) -> ChannelGraph:
        """Traces and analyses ``model(*inputs)``.

        Args:
            model: Any module that `torch.export` can follow; left as it was.
            inputs: Example inputs.
            fix_outputs: Keep the channels of the model's outputs whole.

        Raises:
            TraceError: If the model cannot be exported.
        """
        return cls.from_trace(model, trace(model, inputs), fix_outputs)

    @classmethod
    def from_trace(
        cls,
        model: nn.Module,
        traced: Trace,
        fix_outputs: bool = True,
        freeze: Mapping[str, str] | None = None,
    ) -> ChannelGraph:
        """Analyses a model that has been traced.

        Args:
            model: The model.
            traced: What `trace` returned for it.
            fix_outputs: Keep the channels of the model's outputs whole.
            freeze: Kinds (`kind_of`) of groups and blocks, or paths of blocks, that have to stay,
                with the reason.
        """
        return _build(model, Walk(model, traced, fix_outputs), traced, freeze or {})


def same_groups(first: ChannelGraph, second: ChannelGraph) -> list[int] | None:
    """Which of the first graph's groups are the second's, where both are of one model.

    Returns:
        An index for every group of the second; None where channels are not coupled alike.
    """
    known = [WHOLE] * len(second.groups)
    places = {key: dims.keys() for key, dims in second.dims.items()}
    if {key: dims.keys() for key, dims in first.dims.items()} != places:
        return None
    for key, dims in second.dims.items():
        for dim, there in dims.items():
            here = first.dims[key][dim]
            for group, index in set(zip(there.group.tolist(), here.group.tolist(), strict=True)):
                if group != WHOLE and known[group] == WHOLE:
                    known[group] = index
            renumbered = there.with_groups(known)
            if not (np.array_equal(here.group, renumbered.group)
                    and np.array_equal(here.unit, renumbered.unit)):  # fmt: skip
                return None
    return None if WHOLE in known else known


def _build(model: nn.Module, walk: Walk, traced: Trace, freeze: Mapping[str, str]) -> ChannelGraph:
    graph = traced.module.graph
    found = find_runs(model, walk, graph)
    runs = _without(found, freeze)
    lines = {
        (key, dim): walk.ids.find(factor.reshape(-1))
        for key, value in walk.tensors.items()
        for dim in range(len(value.shape))
        if (factor := value.factor(dim)) is not None
    }
    makers = _makers(walk)
    reasons = _reasons(walk)
    classes, fixed = _classes(lines, makers, reasons)
    embedding = _embedding(walk, found)
    heads = {root for ids in walk.ids.wholes for root in walk.ids.find(ids).reshape(-1).tolist()}
    groups = [_group(roots, makers, embedding, heads) for roots in classes.values()]
    for group in groups:
        if group.kind in freeze:
            fixed.update(dict.fromkeys(group.makers, freeze[group.kind]))
    free = [
        (group, roots)
        for group, roots in zip(groups, classes.values(), strict=True)
        if group.kind not in freeze
    ]
    free.sort(key=lambda pair: pair[0].order)

    place = np.full((len(walk.ids), 2), WHOLE)
    place[:, 1] = 0
    for index, (_, roots) in enumerate(free):
        place[roots, 0] = index
        place[roots, 1] = np.arange(len(roots))

    def dim_map(ids: Ids) -> DimMap:
        roots = walk.ids.find(ids)
        if (roots == roots[0]).all():  # all of one unit of others' making: none can go alone
            return DimMap(np.full(len(roots), WHOLE), np.zeros(len(roots), dtype=np.int64))
        return DimMap(place[roots, 0], place[roots, 1])

    def free_dim(ids: Ids | None) -> DimMap | None:
        if ids is None:
            return None
        mapped = dim_map(ids)
        return mapped if (mapped.group != WHOLE).any() else None

    dims: dict[str, dict[int, DimMap]] = defaultdict(dict)
    for (key, dim), line in lines.items():
        if (mapped := free_dim(line)) is not None:
            dims[key][dim] = mapped

    def size(value: Value, dim: int) -> LinearForm:
        ids = value.factor(dim)
        return LinearForm(value.shape[dim], ()) if ids is None else dim_map(ids.reshape(-1)).form()

    skippable = [block.path for run in runs for block in run.skippable]
    rows = [
        Cost(
            row.kind,
            next((p for p in module_stack(row.node).values() if p in skippable), ''),
            row.factor,
            tuple(dim_map(ids).form() for ids in row.dims),
        )
        for row in walk.rows
    ]
    parameters = [
        Cost(
            'parameter',
            next((p for p in skippable if key.startswith(p + '.')), ''),
            1,
            tuple(size(walk.tensors[key], dim) for dim in range(len(parameter.shape))),
        )
        for key, parameter in model.named_parameters()
        if key in walk.tensors
    ]
    unused = [
        Cost('parameter', '', parameter.numel(), ())
        for key, parameter in model.named_parameters()
        if key not in walk.tensors
    ]
    return ChannelGraph(
        groups=tuple(group for group, _ in free),
        dims=dict(dims),
        runs=tuple(runs),
        costs=(*rows, *parameters, *unused),
        calls=tuple(_calls(walk, free_dim)),
        statistics=tuple(
            Statistics(one.node, dims_over)
            for one in walk.renormalised
            if (dims_over := _free(one.dims, free_dim))
        ),
        fixed=fixed,
        unknown=dict(walk.unknown),
        outputs=tuple(
            _free({d: walk.line(value, d) for d in range(len(value.shape))}, free_dim)
            for value in walk.outputs
        ),
        trace=traced,
    )


def _free(
    dims: Mapping[int, Ids | None], free_dim: Callable[[Ids | None], DimMap | None]
) -> dict[int, DimMap]:
    """The dimensions that hold free channels."""
    return {dim: mapped for dim, ids in dims.items() if (mapped := free_dim(ids)) is not None}


def _calls(walk: Walk, free_dim: Callable[[Ids | None], DimMap | None]) -> Iterator[SizedCall]:
    """In order: which of them are given sizes by Python code, the dynamic modules know."""
    for call in walk.sized:
        if not str(call.node.target).endswith('.dtype'):  # a view of other numbers
            modules = tuple((path, key) for key, path in module_stack(call.node).items())
            dims = tuple(map(free_dim, call.ids))
            yield SizedCall(operator_name(call.node), modules, call.sizes, dims, call.runs)


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
