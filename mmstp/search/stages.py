"""Stages, found in a model's graph: blocks on one residual stream, or layers of one resolution."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..analysis.analysis import ChannelGraph
from ..analysis.blocks import is_within
from ..analysis.groups import Group
from ..analysis.walk import NO_HANDLER
from ..errors import SpaceError

STEM_STAYS = 'the stem stays whole (space.stem=False)'
EMBEDDING_STAYS = 'the embedding stays whole (space.embedding=False)'


@dataclass(frozen=True)
class Stage:
    """One entry of an architecture's depths and widths.

    Attributes:
        name: The container of its blocks, or the first layer where it has none.
        chains: Paths of its blocks, chain by chain; depth ``d`` keeps the first ``d`` of each.
        groups: Indices into the graph's groups; the width applies to all of them.
        depths: Blocks that may be kept, ascending.
        widths: Fractions of the channels that may be kept, ascending, 1 last.
    """

    name: str
    chains: tuple[tuple[str, ...], ...]
    groups: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[float, ...]


def free_groups(
    graph: ChannelGraph, fix: Sequence[str], stem: bool, embedding: bool
) -> tuple[list[int], dict[str, str]]:
    """Indices of the groups that may be narrowed, and why the layers of the others stay whole.

    The options are those of `SearchSpace`, which a `SpaceError` names.
    """
    if not isinstance(fix, (list, tuple)) or not all(isinstance(one, str) for one in fix):
        raise SpaceError(f'space.fix={fix!r}: expected a list of regular expressions')
    groups, fixed = graph.groups, dict(graph.fixed)
    layers = {*fixed, *(maker for group in groups for maker in group.makers)}
    for pattern in fix:
        try:
            found = any(re.search(pattern, layer) for layer in layers)
        except re.error as error:
            raise SpaceError(f'space.fix: {pattern!r} is no regular expression: {error}') from error
        if not found:
            raise SpaceError(
                f'space.fix: {pattern!r} matches none of the layers that make channels: '
                f'{shortened(sorted(layers), 8)}'
            )
    blocks = [path for chain in graph.chains for path in chain.paths]
    first = min(graph.layers, default=None)
    first_block = min((o for o, path, _ in graph.layers if is_within(path, blocks)), default=None)
    free = []
    for index, group in enumerate(groups):
        named = (f'space.fix={p!r}' for p in fix for m in group.makers if re.search(p, m))
        in_block = sum(is_within(m, blocks) for m in group.makers) * 2 > len(group.makers)
        if first is None or first_block is None:
            in_stem = first is not None and first.path in group.makers
        else:
            in_stem = group.resolution == first.resolution and group.order < first_block
        reason = next(named, None)
        if reason is None and in_stem and not in_block and not stem:
            reason = STEM_STAYS
        if reason is None and group.embedding and not embedding:
            reason = EMBEDDING_STAYS
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


def nothing(graph: ChannelGraph, fixed: Mapping[str, str]) -> str:
    """Why there is nothing to choose, with all that is known."""
    found = [f'{shortened(paths, 3)}: {why}' for why, paths in by_reason(fixed).items()]
    blocks = [
        f'{shortened(paths, 3)}: {why}' for why, paths in by_reason(graph.unskippable).items()
    ]
    operators = [
        f'operator {name!r} {NO_HANDLER} (in {shortened(paths, 3)})'
        for name, paths in graph.unknown.items()
    ]
    reasons = [
        f'what was found has to stay ({"; ".join(found)})' if found else '',
        f'blocks cannot be skipped ({"; ".join(blocks)})' if blocks else '',
        '; '.join(operators),
    ]
    return '; '.join(filter(None, reasons)) or (
        'it has no layer that makes channels and no block that may be skipped'
    )


def shortened(paths: Sequence[str], count: int) -> str:
    """The first few, and how many more there are."""
    more = f' and {len(paths) - count} more' if len(paths) > count else ''
    return ', '.join(paths[:count]) + more


def check_parts(graph: ChannelGraph, fixed: Mapping[str, str], parts: Sequence[str]) -> None:
    """Raises a `SpaceError` for a part in which no layer makes channels."""
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise SpaceError(f'space.parts={parts!r}: expected a list of paths of modules')
    layers = {*fixed, *(maker for group in graph.groups for maker in group.makers)}
    for index, part in enumerate(parts):
        if is_within(part, [*parts[:index], *parts[index + 1 :]]):
            raise SpaceError(f'space.parts: {part!r} is there twice, or within another of {parts}')
        if not any(is_within(layer, [part]) for layer in layers):
            raise SpaceError(
                f'space.parts: {part!r} holds none of the layers that make channels in the trace: '
                f'{shortened(sorted(layers), 8)}'
            )


def find_stages(
    graph: ChannelGraph,
    free: Sequence[int],
    widths: tuple[float, ...],
    depths: bool,
    cut: int,
    parts: Sequence[str],
) -> list[Stage]:
    """Blocks on one residual stream are a stage; other layers join by part or resolution.

    ``free`` are indices of groups, ``widths`` the choices of every stage; the other options are
    those of `SearchSpace`.
    """
    groups = graph.groups
    found: dict[object, _Found] = {}
    if len(graph.chains) == 1 and len(graph.chains[0].paths) >= 2 * cut:
        (chain,) = graph.chains
        for part in np.array_split(np.arange(len(chain.paths)), cut):
            blocks = tuple(chain.paths[i] for i in part)
            found[blocks] = _Found(chain.order + int(part[0]), [blocks])
    else:
        for chain in graph.chains:
            found.setdefault(chain.stream, _Found(chain.order)).chains.append(chain.paths)
    anchors = sorted(found.values(), key=lambda stage: stage.order)
    loose = []
    for index in free:
        # how many of its layers are in the blocks of each; of equals the first
        inside = {
            key: sum(is_within(m, path) for m in groups[index].makers for path in stage.chains)
            for key, stage in found.items()
        }
        most = max(inside, key=inside.__getitem__, default=None)
        if most is not None and inside[most]:
            found[most].groups.append(index)
        else:
            loose.append(index)
    at = [(stage, groups[stage.groups[-1]].resolution) for stage in anchors if stage.groups]
    for index in loose:
        group = groups[index]
        own = max(parts, key=lambda part: _shares(group, part), default='')
        if parts and _shares(group, own):
            found.setdefault(own, _Found(group.order)).groups.append(index)
            continue
        near = [stage for stage, resolution in at if resolution == group.resolution]
        before = [stage for stage in near if stage.order < group.order]
        if near:
            stage = before[-1] if before else near[0]
        else:
            stage = found.setdefault(group.resolution, _Found(group.order))
        stage.groups.append(index)
    result = []
    for key, stage in sorted(found.items(), key=lambda pair: pair[1].order):
        longest = max(map(len, stage.chains), default=1)
        if longest > 1 or stage.groups:
            result.append(
                Stage(
                    str(key) if key in parts else _name(stage, groups),
                    tuple(stage.chains),
                    tuple(stage.groups),
                    tuple(range(1, longest + 1)) if depths else (longest,),
                    widths if stage.groups else (1.0,),
                )
            )
    # stages that share a container are named after their first block
    names = [stage.name for stage in result]
    return [
        replace(stage, name=stage.chains[0][0])
        if stage.chains and names.count(stage.name) > 1
        else stage
        for stage in result
    ]


@dataclass
class _Found:
    """A stage on the way, with its place in the trace."""

    order: int
    chains: list[tuple[str, ...]] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)


def _shares(group: Group, part: str) -> int:
    """How many layers of a group are in a part."""
    return sum(is_within(maker, [part]) for maker in group.makers)


def _name(stage: _Found, groups: Sequence[Group]) -> str:
    if not stage.chains:
        return groups[stage.groups[0]].name
    first = stage.chains[0][0]
    return first.rpartition('.')[0] or first


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value)


def read_widths(field: str, widths: Sequence[float]) -> tuple[float, ...]:
    """Fractions in ascending order, 1 among them."""
    if not _is_list(widths) or any(
        isinstance(w, bool) or not isinstance(w, (int, float)) or not 0 < w <= 1 for w in widths
    ):
        raise SpaceError(f'{field}={widths!r}: expected a list of fractions in (0, 1]')
    return tuple(sorted({*map(float, widths), 1.0}))


def with_choices(
    stages: Sequence[Stage], overrides: Mapping[str, Mapping[str, Sequence[Any]]]
) -> Iterator[Stage]:
    """Stages with the choices that a config names for some of them."""
    names = [stage.name for stage in stages]
    if not isinstance(overrides, Mapping):
        raise SpaceError(
            f'space.stages={overrides!r}: expected a dict of choices by the name of a stage'
        )
    for name, choices in overrides.items():
        if name not in names:
            raise SpaceError(f'space.stages[{name!r}]: no such stage; found: {names}')
        if not isinstance(choices, Mapping):
            raise SpaceError(
                f'space.stages[{name!r}]={choices!r}: expected dict(widths=…, depths=…)'
            )
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
            longest, wanted = max(depths), choices['depths']
            if not _is_list(wanted) or any(
                isinstance(d, bool) or not isinstance(d, int) or not 1 <= d <= longest
                for d in wanted
            ):
                raise SpaceError(
                    f'space.stages[{stage.name!r}].depths={wanted!r}: '
                    f'expected a list of whole numbers from 1 to {longest}'
                )
            depths = tuple(sorted({*wanted, longest}))
        yield replace(stage, depths=depths, widths=widths)
