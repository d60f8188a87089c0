"""What one trace of a model tells about its channels, blocks and costs."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .blocks import Run, find_runs
from .values import Ids, Value
from .walk import Trace, Walk, module_stack, trace

WHOLE = -1  # a position that belongs to no group is always kept


def kind_of(path: str) -> str:
    """A path without numbers: modules that play one role in repeated blocks share it."""
    parts = path.split('.')
    return '.'.join('*' if part.isdigit() else part.rstrip('0123456789') for part in parts)


@dataclass(frozen=True)
class Group:
    """Channels that are kept or dropped together, in every tensor that holds them.

    Attributes:
        name: The module that makes them (the first, where several do).
        units: How many can be dropped one after the other.
        unit_size: Channels per unit: 1, or those of a whole group of a grouped convolution.
        makers: Paths of all modules that make them.
        order: The place of the first maker in the trace.
        resolution: The spatial shape of what the first maker puts out; empty for vectors.
    """

    name: str
    units: int
    unit_size: int
    makers: tuple[str, ...]
    order: int
    resolution: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.units * self.unit_size

    @property
    def kind(self) -> str:
        """`kind_of` the name."""
        return kind_of(self.name)


@dataclass(frozen=True)
class DimMap:
    """Which group and which of its units every position of a dimension belongs to."""

    group: NDArray[np.int64]
    unit: NDArray[np.int64]
    _kept: dict[tuple[int, ...], NDArray[np.int64]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def kept(self, units: Sequence[int]) -> NDArray[np.int64]:
        """The positions that stay when the first ``units[g]`` units of each group ``g`` do."""
        own = tuple(int(units[group]) for group in self._groups)
        if own not in self._kept:
            limits = np.append(np.asarray(units), 1)  # WHOLE indexes the last: unit 0 of 1
            self._kept[own] = np.flatnonzero(self.unit < limits[self.group])
        return self._kept[own]

    @functools.cached_property
    def _groups(self) -> list[int]:
        return [group for group in np.unique(self.group).tolist() if group != WHOLE]

    def form(self) -> LinearForm:
        """How many positions stay, as a function of the units kept of each group."""
        groups, counts = np.unique(self.group, return_counts=True)
        constant = int(counts[groups == WHOLE].sum())
        weights = {}
        for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
            if group != WHOLE:
                units = int(self.unit[self.group == group].max()) + 1
                weights[group] = count // units
        return LinearForm(constant, tuple(sorted(weights.items())))


@dataclass(frozen=True)
class LinearForm:
    """``constant + sum(weight * units[group])``."""

    constant: int
    weights: tuple[tuple[int, int], ...]


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
class SizedBy:
    """A module whose Python code may hold the size of some channels as a number."""

    module: str
    size: int
    dim: DimMap


@dataclass(frozen=True)
class ChannelGraph:
    """Coupled channels, skippable blocks and costs of a model; nothing about training.

    Attributes:
        groups: The free groups, in order of execution.
        dims: For every tensor (state-dict key) the dimensions that hold free channels.
        runs: Blocks that may be skipped.
        costs: One row per operator and per parameter.
        fixed: Layers whose channels have to stay, with the reason.
        unknown: Operators without a handler, with the modules that call them.
        outputs: For every output of the model the dimensions that hold free channels.
    """

    groups: tuple[Group, ...]
    dims: Mapping[str, Mapping[int, DimMap]]
    runs: tuple[Run, ...]
    costs: tuple[Cost, ...]
    sized_by: tuple[SizedBy, ...]
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
        freeze: Mapping[str, str] | None = None,
    ) -> ChannelGraph:
        """Traces and analyses ``model(*inputs)``.

        Args:
            model: Any module that `torch.export` can follow; left as it was.
            inputs: Example inputs.
            fix_outputs: Keep the channels of the model's outputs whole.
            freeze: Kinds (`kind_of`) of groups and blocks that have to stay, with the reason.

        Raises:
            TraceError: If the model cannot be exported.
        """
        traced = trace(model, inputs)
        walk = Walk(model, traced, fix_outputs)
        return _build(model, walk, traced, freeze or {})


def _build(model: nn.Module, walk: Walk, traced: Trace, freeze: Mapping[str, str]) -> ChannelGraph:
    graph = traced.module.graph
    runs = _without(find_runs(model, walk, graph), freeze)
    lines = {
        (key, dim): walk.ids.find(factor.reshape(-1))
        for key, value in walk.tensors.items()
        for dim in range(len(value.shape))
        if (factor := value.factor(dim)) is not None
    }
    makers = _makers(walk, lines)
    reasons = _reasons(walk)
    classes, fixed = _classes(lines, makers, reasons)
    groups = [_group(roots, lines, makers, signature) for signature, roots in classes.items()]
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
        return DimMap(place[roots, 0], place[roots, 1])

    dims: dict[str, dict[int, DimMap]] = defaultdict(dict)
    for (key, dim), line in lines.items():
        mapped = dim_map(line)
        if (mapped.group != WHOLE).any():
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
        sized_by=tuple(
            SizedBy(baked.module, baked.size, mapped)
            for baked in walk.baked_sizes
            if ((mapped := dim_map(baked.ids)).group != WHOLE).any()
        ),
        fixed=fixed,
        unknown=dict(walk.unknown),
        outputs=tuple(
            {
                dim: mapped
                for dim in range(len(value.shape))
                if (ids := value.factor(dim)) is not None
                and ((mapped := dim_map(ids.reshape(-1))).group != WHOLE).any()
            }
            for value in walk.outputs
        ),
        trace=traced,
    )


def _without(runs: Sequence[Run], freeze: Mapping[str, str]) -> list[Run]:
    kept = [
        replace(run, skippable=tuple(b for b in run.skippable if kind_of(b.path) not in freeze))
        for run in runs
    ]
    return [run for run in kept if run.skippable]


Lines = Mapping[tuple[str, int], Ids]
Signature = tuple[tuple[str, int, int], ...]  # tensor, dimension, how often
Makers = dict[int, list[tuple[int, str, tuple[int, ...]]]]


def _makers(walk: Walk, lines: Lines) -> Makers:
    """For every class of channels the layers that make it: order, path and resolution."""
    makers: Makers = defaultdict(list)
    for node, key in walk.producers:
        if (key, 0) not in lines:
            continue
        shape = tuple(node.meta['val'].shape)
        maker = (walk.order[node], key.rpartition('.')[0], shape[2:])
        for root in np.unique(lines[key, 0]).tolist():
            makers[root].append(maker)
    return makers


def _reasons(walk: Walk) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for ids, reason in walk.ids.frozen:
        for root in np.unique(walk.ids.find(ids.reshape(-1))).tolist():
            reasons.setdefault(root, reason)
    return reasons


def _classes(
    lines: Lines, makers: Makers, reasons: Mapping[int, str]
) -> tuple[dict[Signature, list[int]], dict[str, str]]:
    """Classes of channels that appear in the same tensors equally often, and what is fixed."""
    appears: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for (key, dim), line in lines.items():
        roots, counts = np.unique(line, return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            appears[root].append((key, dim, count))
    classes: dict[Signature, list[int]] = defaultdict(list)
    fixed: dict[str, str] = {}
    for root in sorted(appears):
        if root in reasons:
            for _, path, _ in makers.get(root, ()):
                fixed.setdefault(path, reasons[root])
        elif root in makers:
            classes[tuple(appears[root])].append(root)
    for signature, members in list(classes.items()):
        if len(members) == 1:
            del classes[signature]
            for _, path, _ in makers[members[0]]:
                fixed.setdefault(path, 'all its channels are coupled')
    return dict(classes), fixed


def _group(roots: Sequence[int], lines: Lines, makers: Makers, signature: Signature) -> Group:
    made_by = sorted(set(makers[roots[0]]))
    order, name, resolution = made_by[0]
    unit_size = min(count for _, _, count in signature)
    return Group(
        name, len(roots), int(unit_size), tuple(path for _, path, _ in made_by), order, resolution
    )
