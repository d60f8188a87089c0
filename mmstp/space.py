"""The architectures that can be chosen: stages of blocks and width groups."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .architecture import Architecture, ArchitectureError
from .graph import ChannelGraph, Group

WIDTHS = (0.3, 0.5, 0.7, 0.9, 1.0)
DIVISOR = 8


class SpaceError(ValueError):
    """A search space that cannot be built: a wrong option, or nothing that can be pruned."""


@dataclass(frozen=True)
class Stage:
    """One entry of an architecture's depths and widths.

    Attributes:
        name: The container of its blocks, or the first layer where it has none.
        runs: Paths of its blocks, run by run; depth ``d`` keeps the first ``d`` of each.
        groups: Indices into the graph's groups; the width applies to all of them.
        depths: Blocks that may be kept, ascending.
        widths: Fractions of the channels that may be kept, ascending, 1 last.
    """

    name: str
    runs: tuple[tuple[str, ...], ...]
    groups: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[float, ...]


class SearchSpace:
    """Stages with their choices; knows neither weights nor costs.

    Args:
        graph: The analysis of the model.
        widths: Fractions of the channels to choose from; 1 is always among them.
        divisor: Channels are rounded up to a multiple of it (or stay whole).
        depths: Whether blocks may be skipped.
        stages: Other choices for single stages, by name (``tools/search_space.py`` shows them):
            ``{'backbone.layer1': dict(widths=(0.5, 1.0), depths=(2, 3))}``.
        fix: Regular expressions; channels of layers whose path one of them matches stay whole.
        stem: Whether the stem may be pruned: the layers at the first layer's resolution and
            before the first block (in a network without blocks, the first layer). Where they
            are on a stage's residual stream, as in ResNet-18, they follow that stage.

    Raises:
        SpaceError: If an option is out of range or nothing is left to prune.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        widths: Sequence[float] = WIDTHS,
        divisor: int = DIVISOR,
        depths: bool = True,
        stages: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
        fix: Sequence[str] = (),
        stem: bool = False,
    ) -> None:
        if not isinstance(divisor, int) or divisor < 1:
            raise SpaceError(f'space.divisor={divisor!r}: expected a whole number of at least 1')
        if isinstance(fix, str):
            raise SpaceError(f'space.fix={fix!r}: expected a list of regular expressions')
        for pattern in fix:
            try:
                re.compile(pattern)
            except re.error as error:
                raise SpaceError(
                    f'space.fix: {pattern!r} is no regular expression: {error}'
                ) from error
        self.graph = graph
        self.divisor = divisor
        self.fixed = dict(graph.fixed)
        choices = _widths('space.widths', widths)
        free = self._free_groups(fix, stem)
        found = _unique_names(self._stages(free, choices, depths))
        self.stages = tuple(_with_choices(found, stages or {}))
        if all(len(s.depths) * len(s.widths) == 1 for s in self.stages):
            reasons = '; '.join(f'{k}: {v}' for k, v in list(self.fixed.items())[:8])
            raise SpaceError(
                'nothing in this model can be pruned: '
                + (f'what was found has to stay ({reasons})' if reasons else
                   'it has no layer that makes channels and no block that may be skipped')
            )  # fmt: skip
        full = [group.units for group in graph.groups]
        self._full_units = np.array(full, dtype=np.int64)
        self._unit_tables = [
            np.array(
                [[self.units(graph.groups[g], w) for g in stage.groups] for w in stage.widths],
                dtype=np.int64,
            ).reshape(len(stage.widths), len(stage.groups))
            for stage in self.stages
        ]

    # --- found in the graph ----------------------------------------------------------------------

    def _free_groups(self, fix: Sequence[str], stem: bool) -> list[int]:
        groups = self.graph.groups
        blocks = [path for run in self.graph.runs for path in run.paths]
        starts = [
            g.order for g in groups if any(_inside(maker, blocks) for maker in g.makers)
        ]  # fmt: skip
        first_block = min(starts) if blocks and starts else None
        first = min(groups, key=lambda g: g.order, default=None)
        free = []
        for index, group in enumerate(groups):
            reason = next(
                (f'space.fix={p!r}' for p in fix for m in group.makers if re.search(p, m)), None
            )
            in_stem = first is not None and (
                group is first
                if first_block is None
                else group.order < first_block and group.resolution == first.resolution
            )
            in_block = sum(_inside(m, blocks) for m in group.makers) * 2 > len(group.makers)
            if reason is None and in_stem and not in_block and not stem:
                reason = 'the stem stays whole (space.stem=False)'
            if reason is None:
                free.append(index)
            else:
                self.fixed.update(dict.fromkeys(group.makers, reason))
        return free

    def _stages(self, free: Sequence[int], widths: tuple[float, ...], depths: bool) -> list[Stage]:
        """Blocks on one residual stream are a stage; other layers join by resolution."""
        groups = self.graph.groups
        found: dict[object, dict[str, Any]] = {}
        for run in self.graph.runs:
            stage = found.setdefault(run.residual, {'runs': [], 'groups': [], 'order': run.order})
            stage['runs'].append(run.paths)
        loose = []
        for index in free:
            members = [
                (
                    sum(_inside(m, path) for m in groups[index].makers for path in stage['runs']),
                    stage,
                )
                for stage in found.values()
            ]
            count, stage = max(members, key=lambda pair: pair[0], default=(0, {}))
            if count:
                stage['groups'].append(index)
            else:
                loose.append(index)
        for stage in found.values():
            own = [groups[g] for g in stage['groups']]
            stage['resolution'] = own[-1].resolution if own else None
        anchors = sorted(found.values(), key=lambda s: s['order'])
        for index in loose:
            group = groups[index]
            near = [s for s in anchors if s['resolution'] == group.resolution]
            before = [s for s in near if s['order'] < group.order]
            if near:
                (before[-1] if before else near[0])['groups'].append(index)
                continue
            stage = found.setdefault(
                group.resolution, {'runs': [], 'groups': [], 'order': group.order}
            )
            stage['groups'].append(index)
        return [
            Stage(
                _name(stage, groups),
                tuple(stage['runs']),
                tuple(stage['groups']),
                tuple(range(1, longest + 1)) if depths else (longest,),
                widths if stage['groups'] else (1.0,),
            )
            for stage in sorted(found.values(), key=lambda s: s['order'])
            for longest in [max((len(run) for run in stage['runs']), default=1)]
            if longest > 1 or stage['groups']
        ]

    # --- choices ---------------------------------------------------------------------------------

    @property
    def largest(self) -> Architecture:
        """The dense model."""
        return Architecture(
            tuple(s.depths[-1] for s in self.stages), tuple(s.widths[-1] for s in self.stages)
        )

    @property
    def smallest(self) -> Architecture:
        """The fewest blocks and channels."""
        return Architecture(
            tuple(s.depths[0] for s in self.stages), tuple(s.widths[0] for s in self.stages)
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Choices per entry of a row: the depths of all stages, then the widths."""
        return (
            *(len(s.depths) for s in self.stages),
            *(len(s.widths) for s in self.stages),
        )

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(self.sizes)

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture with every choice drawn uniformly."""
        return Architecture(
            tuple(rng.choice(s.depths) for s in self.stages),
            tuple(rng.choice(s.widths) for s in self.stages),
        )

    def expand(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """A support architecture: every choice uniform over those not below (Eq. 6)."""
        self.check(architecture)
        return Architecture(
            tuple(
                rng.choice([d for d in s.depths if d >= depth])
                for s, depth in zip(self.stages, architecture.depths, strict=True)
            ),
            tuple(
                rng.choice([w for w in s.widths if w >= width])
                for s, width in zip(self.stages, architecture.widths, strict=True)
            ),
        )

    def enumerate(self) -> Iterator[Architecture]:
        """All architectures, one by one."""
        for row in itertools.product(*(range(n) for n in self.sizes)):
            yield self.decode(row)

    def check(self, architecture: Architecture) -> None:
        """Whether the architecture is a member.

        Raises:
            ArchitectureError: Naming the stage, the value met and the choices.
        """
        if len(architecture.depths) != len(self.stages):
            raise ArchitectureError(
                f'{architecture} has {len(architecture.depths)} stages, this space has '
                f'{len(self.stages)} ({", ".join(s.name for s in self.stages)}); '
                f'the dense network is {self.largest}'
            )
        for stage, depth, width in zip(
            self.stages, architecture.depths, architecture.widths, strict=True
        ):
            if depth not in stage.depths:
                raise ArchitectureError(
                    f'{architecture}: stage {stage.name!r} cannot keep {depth} blocks; '
                    f'choices: {stage.depths}'
                )
            if width not in stage.widths:
                raise ArchitectureError(
                    f'{architecture}: stage {stage.name!r} cannot keep {width} of its channels; '
                    f'choices: {stage.widths}'
                )

    # --- rows of choice indices, for many architectures at once ----------------------------------

    def encode(self, architecture: Architecture) -> NDArray[np.int64]:
        """The indices of the choices, shape (2 * stages,)."""
        self.check(architecture)
        return np.array(
            [
                *(s.depths.index(d) for s, d in zip(self.stages, architecture.depths, strict=True)),
                *(s.widths.index(w) for s, w in zip(self.stages, architecture.widths, strict=True)),
            ]
        )

    def decode(self, row: Sequence[int]) -> Architecture:
        """The architecture of a row of indices."""
        n = len(self.stages)
        return Architecture(
            tuple(s.depths[i] for s, i in zip(self.stages, row[:n], strict=True)),
            tuple(s.widths[i] for s, i in zip(self.stages, row[n:], strict=True)),
        )

    def all_rows(self) -> NDArray[np.int64]:
        """Every architecture as a row of indices, shape (size, 2 * stages)."""
        return np.stack(np.unravel_index(np.arange(self.size), self.sizes), axis=1)

    # --- what an architecture keeps --------------------------------------------------------------

    def units(self, group: Group, width: float) -> int:
        """Units kept of a group: channels rounded up to a multiple of the divisor."""
        step = math.lcm(group.unit_size, self.divisor)
        # the subtraction keeps 0.55 * 800 = 440.00000000000006 at 440
        channels = math.ceil(width * group.channels / step - 1e-9) * step
        return min(channels // group.unit_size, group.units)

    def group_units(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Units kept of every group of the graph, shape (architectures, groups)."""
        units = np.broadcast_to(self._full_units, (len(rows), len(self._full_units))).copy()
        n = len(self.stages)
        for index, (stage, table) in enumerate(zip(self.stages, self._unit_tables, strict=True)):
            if stage.groups:
                units[:, list(stage.groups)] = table[rows[:, n + index]]
        return units

    def skipped(self, architecture: Architecture) -> tuple[str, ...]:
        """The paths of the blocks that the architecture leaves out."""
        return tuple(
            path
            for stage, depth in zip(self.stages, architecture.depths, strict=True)
            for run in stage.runs
            for path in run[depth:]
        )

    def min_depth(self) -> dict[str, tuple[int, int]]:
        """For every skippable block its stage's index and the least depth that keeps it."""
        return {
            path: (index, position + 1)
            for index, stage in enumerate(self.stages)
            for run in stage.runs
            for position, path in enumerate(run)
            if position
        }


def _inside(path: str, blocks: Sequence[str]) -> bool:
    return any(path == block or path.startswith(block + '.') for block in blocks)


def _unique_names(stages: Sequence[Stage]) -> list[Stage]:
    """Stages that share a container are named after their first block."""
    names = [stage.name for stage in stages]
    return [
        replace(stage, name=stage.runs[0][0])
        if stage.runs and names.count(stage.name) > 1
        else stage
        for stage in stages
    ]


def _name(stage: Mapping[str, Any], groups: Sequence[Group]) -> str:
    if not stage['runs']:
        return groups[stage['groups'][0]].name
    first = stage['runs'][0][0]
    return first.rpartition('.')[0] or first


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value)


def _widths(field: str, widths: Sequence[float]) -> tuple[float, ...]:
    if not _is_list(widths) or any(
        isinstance(w, bool) or not isinstance(w, (int, float)) or not 0 < w <= 1 for w in widths
    ):
        raise SpaceError(f'{field}={widths!r}: expected a list of fractions in (0, 1]')
    return tuple(sorted({*map(float, widths), 1.0}))


def _with_choices(
    stages: Sequence[Stage], overrides: Mapping[str, Mapping[str, Sequence[Any]]]
) -> Iterator[Stage]:
    names = [stage.name for stage in stages]
    for name, choices in overrides.items():
        if name not in names:
            raise SpaceError(f'space.stages[{name!r}]: no such stage; found: {names}')
        unknown = set(choices) - {'widths', 'depths'}
        if unknown:
            raise SpaceError(
                f'space.stages[{name!r}]: unknown {sorted(unknown)}; accepted: widths, depths'
            )
    for stage in stages:
        choices = overrides.get(stage.name, {})
        widths, depths = stage.widths, stage.depths
        if 'widths' in choices and stage.groups:
            widths = _widths(f'space.stages[{stage.name!r}].widths', choices['widths'])
        if 'depths' in choices:
            longest = max(depths)
            wanted = choices['depths']
            if not _is_list(wanted) or any(
                not isinstance(d, int) or not 1 <= d <= longest for d in wanted
            ):
                raise SpaceError(
                    f'space.stages[{stage.name!r}].depths={choices["depths"]!r}: '
                    f'expected a list of whole numbers from 1 to {longest}'
                )
            depths = tuple(sorted({*wanted, longest}))
        yield Stage(stage.name, stage.runs, stage.groups, depths, widths)
