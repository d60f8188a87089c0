"""A compact network described by what is smaller in it than in its dense network.

Attributes of layers follow from the shapes, so they are not written down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..analysis.blocks import is_within
from ..analysis.groups import WHOLE
from ..analysis.handing_on import HandsOn, is_result
from ..analysis.records import SizedCall
from ..architecture import Architecture
from ..errors import CompactSpecError
from ..search.space import SearchSpace
from ..search.stages import Stage
from .sized_calls import Ways


@dataclass(frozen=True)
class StageShapes:
    """How the depth and the width of a stage are read off the shapes of a network's tensors.

    Attributes:
        name: The stage's.
        chains: Paths of its blocks, chain by chain; depth ``d`` is the first ``d`` of each.
        tensor: State-dict key of a tensor that is there at any depth; '' where no width is chosen.
        dim: Its dimension of the stage's channels.
        widths: For every fraction of the channels how many of them there are.
    """

    name: str
    chains: tuple[tuple[str, ...], ...]
    tensor: str
    dim: int
    widths: tuple[tuple[float, int], ...]

    def within(self, start: str) -> StageShapes | None:
        """With paths relative to a submodule; None where nothing of the stage is in it."""
        chains = tuple(
            tuple(path.removeprefix(start) for path in chain)
            for chain in self.chains
            if chain[0].startswith(start)
        )
        inside = self.tensor.startswith(start)
        if not chains and not inside:
            return None
        tensor = self.tensor.removeprefix(start) if inside else ''
        return StageShapes(self.name, chains, tensor, self.dim, self.widths if inside else ())

    def depth(self, shapes: Mapping[str, Sequence[int]]) -> int | None:
        """Blocks that a network with tensors of these shapes has; None where it is no depth."""
        counts = []
        for chain in self.chains:
            # the first is always there, and may hold no tensor to tell
            kept = [any(key.startswith(path + '.') for key in shapes) for path in chain[1:]]
            if kept != sorted(kept, reverse=True):
                return None
            counts.append(1 + sum(kept))
        depth = max(counts, default=1)
        agree = all(
            n == min(depth, len(chain)) for n, chain in zip(counts, self.chains, strict=True)
        )
        return depth if agree else None

    def width(self, shapes: Mapping[str, Sequence[int]]) -> float | None:
        """The fraction of its channels; None where it is none of the choices."""
        if not self.tensor:
            return 1.0
        shape = shapes.get(self.tensor, ())
        if len(shape) <= self.dim:
            return None
        fitting = [width for width, size in self.widths if size == shape[self.dim]]
        return max(fitting, default=None)


@dataclass(frozen=True)
class CompactSpec:
    """What is smaller in a compact network; plain types only, as it goes into ``plan.json``.

    Attributes:
        shapes: Shapes of tensors, by state-dict key.
        calls: The sized calls of a forward, by module path, for each way through it.
        skipped: By path of a block that is left out, what is returned instead (`HandsOn`).
        stages: How the architecture is read off a network of this kind.
    """

    shapes: Mapping[str, tuple[int, ...]]
    calls: Mapping[str, Ways]
    skipped: Mapping[str, HandsOn]
    stages: tuple[StageShapes, ...] = ()

    @classmethod
    def from_dict(cls, plan: Mapping[str, Any]) -> CompactSpec:
        """Reads what `to_dict` writes.

        Raises:
            CompactSpecError: If a field is missing or unknown, or ``skipped`` is malformed.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(plan, Mapping) or set(plan) != set(fields):
            found = sorted(plan) if isinstance(plan, Mapping) else repr(plan)
            if isinstance(plan, Mapping) and 'parts' in plan:
                raise CompactSpecError(
                    f'plan has the fields {found}: that is a whole plan.json; give its path, or '
                    f'one of its parts ({", ".join(map(str, plan["parts"]))})'
                )
            raise CompactSpecError(
                f'plan has the fields {found}; expected {", ".join(fields)}, as '
                'tools/export.py writes them (an export of an earlier version: export it anew)'
            )
        for path, result in plan['skipped'].items():
            if not is_result(result):
                raise CompactSpecError(
                    f'skipped[{path!r}] is {result!r}: expected what the block returns, such as '
                    "{'argument': ['x']} or {'tuple': [{'argument': ['x']}, {'value': None}]}"
                )
        return cls(
            {key: tuple(shape) for key, shape in plan['shapes'].items()},
            {
                path: tuple(tuple(map(SizedCall.from_list, way)) for way in ways)
                for path, ways in plan['calls'].items()
            },
            dict(plan['skipped']),
            tuple(StageShapes(**_tuples(stage)) for stage in plan['stages']),
        )

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists, strings and whole numbers."""
        return {
            'shapes': {key: list(shape) for key, shape in self.shapes.items()},
            'calls': {
                path: [[call.to_list() for call in way] for way in ways]
                for path, ways in self.calls.items()
            },
            'skipped': dict(self.skipped),
            'stages': [dataclasses.asdict(stage) for stage in self.stages],
        }

    def within(self, prefix: str) -> CompactSpec:
        """The part that concerns a submodule, with paths relative to it."""
        start = prefix + '.'

        def inside(mapping: Mapping[str, Any]) -> dict[str, Any]:
            return {
                '' if key == prefix else key.removeprefix(start): value
                for key, value in mapping.items()
                if key == prefix or key.startswith(start)
            }

        stages = tuple(found for stage in self.stages if (found := stage.within(start)) is not None)
        shapes, calls, skipped = map(inside, (self.shapes, self.calls, self.skipped))
        return CompactSpec(shapes, calls, skipped, stages)

    def outside(self, prefixes: Collection[str]) -> CompactSpec:
        """What concerns none of some submodules."""

        def left(mapping: Mapping[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in mapping.items() if not is_within(key, prefixes)}

        shapes, calls, skipped = map(left, (self.shapes, self.calls, self.skipped))
        return CompactSpec(shapes, calls, skipped)

    def without(self, keys: Collection[str]) -> CompactSpec:
        """For a network that lacks the modules of these tensors."""
        gone = {key.rpartition('.')[0] for key in keys}
        return dataclasses.replace(
            self,
            shapes={key: shape for key, shape in self.shapes.items() if key not in keys},
            calls={path: ways for path, ways in self.calls.items() if path not in gone},
        )

    def architecture(self, shapes: Mapping[str, Sequence[int]]) -> Architecture | None:
        """The architecture of a network of this kind, by the shapes of its tensors.

        Where two widths round to the same channels it is the larger one. None where the shapes
        are no architecture's.
        """
        depths = [stage.depth(shapes) for stage in self.stages]
        widths = [stage.width(shapes) for stage in self.stages]
        if None in depths or None in widths:
            return None
        return Architecture.from_nested((depths, widths))

    def describe(self, weights: Mapping[str, Any]) -> str:
        """Which architecture's weights these are, for messages."""
        found = self.architecture({k: tuple(getattr(x, 'shape', ())) for k, x in weights.items()})
        return 'none of its architectures' if found is None else str(found)


def stage_shapes(space: SearchSpace, stage: Stage) -> StageShapes:
    """By a tensor that holds nothing but one group of the stage and is never left out.

    It is one in which as few widths as possible round to the same number of channels.
    """
    skippable = space.min_depth()
    best = StageShapes(stage.name, stage.chains, '', 0, ())
    for key, dims in space.graph.dims.items():
        for dim, dim_map in dims.items():
            whole = len(dim_map.groups) == 1 and WHOLE not in dim_map.group
            if not whole or is_within(key, skippable) or dim_map.groups[0] not in stage.groups:
                continue
            (index,), groups = dim_map.groups, space.graph.groups
            units = [group.units for group in groups]
            widths = []
            for width in stage.widths:
                units[index] = space.units(groups[index], width)
                widths.append((width, len(dim_map.kept(units))))
            if len({size for _, size in widths}) > len({size for _, size in best.widths}):
                best = StageShapes(stage.name, stage.chains, key, dim, tuple(widths))
    return best


def _tuples(value: Any) -> Any:
    """Tuples where a file has lists."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
