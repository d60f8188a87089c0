"""What of a model's analysis does not hold where it is run: groups and blocks that have to stay."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

from torch import nn

from ..analysis.analysis import ChannelGraph
from ..analysis.blocks import kind_of
from ..errors import SupernetError
from ..search.space import SearchSpace
from .check import BOTH, TRAINING, Verifier
from .plan import plan_subnet

DRAWS = 4


@dataclass
class Failing:
    """Groups by name, and blocks by path, whose narrow forward is not the masked trace's: why."""

    groups: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.groups or self.blocks)

    def update(self, other: Failing) -> None:
        """Those of another, too."""
        self.groups.update(other.groups)
        self.blocks.update(other.blocks)


def halved(graph: ChannelGraph, space: SearchSpace) -> list[int]:
    """Half the units of every group that the space narrows."""
    narrowed = {index for stage in space.stages for index in stage.groups}
    return [
        (group.units + 1) // 2 if index in narrowed else group.units
        for index, group in enumerate(graph.groups)
    ]


def any_difference(
    model: nn.Module,
    graph: ChannelGraph,
    space: SearchSpace,
    verifier: Verifier,
    again: bool = False,
) -> str | None:
    """How the narrowest subnets tried differ from the masked trace; None where none does.

    Half of all channels; with all blocks that may be skipped gone too; and with the last ones of a
    chain alone, where its blocks differ in kind. The second is run in all ways, the first, which
    takes longer, in train mode. The smallest subnet is cut out too; with all its blocks it is
    trained for a step, and so is what is cut out. ``again`` is for a model that
    passed, whose code now gives some sizes itself: the second alone, and some subnets by chance.
    """
    units, every = halved(graph, space), list(space.min_depth())

    def reason(skipped: Sequence[str], modes: Sequence[bool] = ()) -> str | None:
        return verifier.difference(plan_subnet(model, graph, units, skipped), units, modes)

    found = reason(every, BOTH) or (reason((), TRAINING) if every and not again else None)
    if found or again:
        return found or _any_by_chance(model, graph, space, verifier)
    found = next(filter(None, map(reason, _endings(model, space))), None)
    if found is None:
        smallest = space.units_of(space.smallest)
        plan = plan_subnet(model, graph, smallest, every)
        deep = plan_subnet(model, graph, smallest, ())
        found = (
            verifier.difference(plan, smallest)
            or verifier.export_difference(plan)
            or verifier.trained_difference(deep)
        )
    return found


def _any_by_chance(
    model: nn.Module, graph: ChannelGraph, space: SearchSpace, verifier: Verifier
) -> str | None:
    """For a few draws of units: at half width, what the code works out may be right by chance."""
    rng, narrow = random.Random(0), halved(graph, space)
    for _ in range(DRAWS):
        units = [
            rng.randint(1, group.units) if half < group.units else half
            for group, half in zip(graph.groups, narrow, strict=True)
        ]
        if found := verifier.difference(plan_subnet(model, graph, units, ()), units):
            return found
    return None


def _endings(model: nn.Module, space: SearchSpace) -> Iterator[list[str]]:
    """Chains that end where one kind of block follows another, once for each pair of kinds."""
    tails: list[list[Sequence[str]]] = []
    for chain in (chain for stage in space.stages for chain in stage.chains):
        kinds = [type(model.get_submodule(path)).__qualname__ for path in chain]
        pairs = {pair: place for place, pair in enumerate(pairwise(kinds), 1)}
        tails.append([chain[place:] for (one, other), place in pairs.items() if one != other])
    for parts in zip_longest(*tails, fillvalue=()):
        yield [path for part in parts for path in part]


def find_failing(
    model: nn.Module, graph: ChannelGraph, space: SearchSpace, verifier: Verifier
) -> Failing:
    """Groups and blocks that have to stay, first by kind (`kind_of`), then one by one.

    Raises:
        SupernetError: If each can be narrowed alone, but not all together.
        VerificationError: If the trace does not compute what the dense model does.
    """
    if graph.traced[0].trace.live:
        verifier.check_dense()  # they were traced in another mode than they run in
    verifier.check_outputs()
    together = any_difference(model, graph, space, verifier)
    failing = Failing()
    if together is None:
        return failing
    verifier.check_dense()
    full, narrow = [group.units for group in graph.groups], halved(graph, space)
    smallest = space.units_of(space.smallest)

    def reason(groups: Sequence[int], skipped: Sequence[str]) -> str | None:
        for chosen in (narrow, smallest):
            units = list(full)
            for index in groups:
                units[index] = chosen[index]
            plan = plan_subnet(model, graph, units, skipped)
            if found := verifier.difference(plan, units, BOTH if chosen is narrow else ()):
                return found
        return verifier.export_difference(plan) or verifier.trained_difference(plan)

    kinds: dict[str, list[int]] = {}
    for index, group in enumerate(graph.groups):
        if narrow[index] < full[index]:
            kinds.setdefault(group.kind, []).append(index)
    for alike in kinds.values():
        if found := reason(alike, ()):
            alone = {index: why for index in alike if (why := reason([index], ()))}
            for index, why in (alone or dict.fromkeys(alike, found)).items():
                failing.groups[graph.groups[index].name] = why
    paths: dict[str, list[str]] = {}
    for path in sorted(space.min_depth()):
        paths.setdefault(kind_of(path), []).append(path)
    for same in paths.values():
        if found := reason((), same):
            lone = {path: why for path in same if (why := reason((), [path]))}
            failing.blocks.update(lone or dict.fromkeys(same, found))
    if not failing:
        raise SupernetError(
            f'{type(model).__name__}: each kind of channels can be narrowed alone, all together '
            f'not: {together}'
        )
    return failing
