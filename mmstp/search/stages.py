"""Stages, found in a model's graph: blocks on one residual stream, or layers of one resolution."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..analysis.analysis import ChannelGraph
from ..analysis.groups import Group
from ..errors import SpaceError


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


def free_groups(
    graph: ChannelGraph, fix: Sequence[str], stem: bool, embedding: bool
) -> tuple[list[int], dict[str, str]]:
    """The groups that may be narrowed, and why the layers of the others stay whole.

    Args:
        graph: The analysis of the model.
        fix: Regular expressions of paths of layers that stay whole.
        stem: Whether the stem may be pruned.
        embedding: Whether residual streams over which layers normalise may be.

    Raises:
        SpaceError: If ``fix`` is not a list of regular expressions.
    """
    if isinstance(fix, str):
        raise SpaceError(f'space.fix={fix!r}: expected a list of regular expressions')
    for pattern in fix:
        try:
            re.compile(pattern)
        except re.error as error:
            raise SpaceError(f'space.fix: {pattern!r} is no regular expression: {error}') from error
    groups, fixed = graph.groups, dict(graph.fixed)
    blocks = [path for run in graph.runs for path in run.paths]
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
        if reason is None and group.embedding and not embedding:
            reason = 'the embedding stays whole (space.embedding=False)'
        if reason is None:
            free.append(index)
        else:
            for maker in group.makers:
                fixed.setdefault(maker, reason)
    return free, fixed


def by_reason(fixed: Mapping[str, str]) -> dict[str, list[str]]:
    """Layers that stay whole, by the reason."""
    reasons: dict[str, list[str]] = {}
    for path, reason in fixed.items():
        reasons.setdefault(reason, []).append(path)
    return reasons


def find_stages(
    graph: ChannelGraph, free: Sequence[int], widths: tuple[float, ...], depths: bool, cut: int
) -> list[Stage]:
    """Blocks on one residual stream are a stage; other layers join by resolution.

    Args:
        graph: The analysis of the model.
        free: Indices of the groups that may be narrowed.
        widths: The choices of every stage.
        depths: Whether blocks may be skipped.
        cut: How many stages one single run of blocks is cut into.
    """
    groups = graph.groups
    found: dict[object, dict[str, Any]] = {}
    if len(graph.runs) == 1 and len(graph.runs[0].paths) >= 2 * cut:
        paths, order = graph.runs[0].paths, graph.runs[0].order
        for part in np.array_split(np.arange(len(paths)), cut):
            blocks = tuple(paths[i] for i in part)
            found[blocks] = {'runs': [blocks], 'groups': [], 'order': order + int(part[0])}
    else:
        for run in graph.runs:
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
        stage = found.setdefault(group.resolution, {'runs': [], 'groups': [], 'order': group.order})
        stage['groups'].append(index)
    result = [
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
    return _unique_names(result)


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


def read_widths(field: str, widths: Sequence[float]) -> tuple[float, ...]:
    """Fractions in ascending order, 1 among them.

    Raises:
        SpaceError: Naming the field.
    """
    if not _is_list(widths) or any(
        isinstance(w, bool) or not isinstance(w, (int, float)) or not 0 < w <= 1 for w in widths
    ):
        raise SpaceError(f'{field}={widths!r}: expected a list of fractions in (0, 1]')
    return tuple(sorted({*map(float, widths), 1.0}))


def with_choices(
    stages: Sequence[Stage], overrides: Mapping[str, Mapping[str, Sequence[Any]]]
) -> Iterator[Stage]:
    """Stages with the choices that a config names for some of them.

    Raises:
        SpaceError: Naming the stage, the value met and what is accepted.
    """
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
            widths = read_widths(f'space.stages[{stage.name!r}].widths', choices['widths'])
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
