"""Groups: channels that are kept or dropped together in every tensor.

``x = a(image); y = b(x) + x; d(cat([y, c(y)]))``, of 16 channels and 8 from c::

    a and b    the addition ties their ids: one group, 0, of 16 units
    c          ids of its own: group 1, of 8 units
    d.weight   its 24 columns, a DimMap: group 0…0 1…1, unit 0…15 0…7; of 8 and 4 units 12 stay
    with y     shuffled in two groups: channels i and i + 8 are tied; group 0 has 8 units of 2,
               a.weight's rows are unit 0…7 0…7, d.weight's columns 0 0 1 1 … 7 7 0…7
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .blocks import embeddings, kind_of
from .ids import ChannelIds, Ids
from .walk import Walk

WHOLE = -1  # a position that belongs to no group is always kept
ALL_COUPLED = 'all its channels are coupled'


@dataclass(frozen=True)
class Group:
    """Channels that are kept or dropped together, in every tensor that holds them.

    Attributes:
        name: The module that makes them (where several do, the first that makes as many of them as
            ``channels``).
        units: How many can be dropped one after the other.
        unit_size: Channels that a maker puts out per unit: 1, those of a whole group of a grouped
            convolution, or those of a whole head (query, key and value) of an attention layer.
        makers: Paths of all modules that make them.
        order: The place of the first maker in the trace.
        resolution: The spatial shape of what the first maker puts out; empty for vectors.
        embedding: Whether it is a residual stream over whose channels a layer normalises.
    """

    name: str
    units: int
    unit_size: int
    makers: tuple[str, ...]
    order: int
    resolution: tuple[int, ...]
    embedding: bool = False

    @property
    def channels(self) -> int:
        return self.units * self.unit_size

    @property
    def kind(self) -> str:
        """`kind_of` the name."""
        return kind_of(self.name)


@dataclass(frozen=True)
class LinearForm:
    """``constant + sum(weight * units[group])``."""

    constant: int
    weights: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class DimMap:
    """Which group and which of its units every position of a dimension belongs to."""

    group: NDArray[np.int64]
    unit: NDArray[np.int64]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DimMap)
            and np.array_equal(self.group, other.group)
            and np.array_equal(self.unit, other.unit)
        )

    def __hash__(self) -> int:
        return hash((self.group.tobytes(), self.unit.tobytes()))

    @property
    def free(self) -> bool:
        """Whether it holds channels of a group."""
        return bool(self.groups)

    def kept(self, units: Sequence[int]) -> NDArray[np.int64]:
        """The positions that stay when the first ``units[g]`` units of each group ``g`` do."""
        own = tuple(int(units[group]) for group in self.groups)
        if own not in self._kept:
            limits = np.append(np.asarray(units), 1)  # WHOLE indexes the last: unit 0 of 1
            self._kept[own] = np.flatnonzero(self.unit < limits[self.group])
        return self._kept[own]

    @functools.cached_property
    def _kept(self) -> dict[tuple[int, ...], NDArray[np.int64]]:
        return {}

    @functools.cached_property
    def groups(self) -> list[int]:
        """The groups whose channels it holds."""
        return [group for group in np.unique(self.group).tolist() if group != WHOLE]

    @functools.cached_property
    def form(self) -> LinearForm:
        """How many positions stay, as a function of the units kept of each group."""
        weights = []
        for group in self.groups:
            units = self.unit[self.group == group]
            weights.append((group, len(units) // (int(units.max()) + 1)))
        return LinearForm(int((self.group == WHOLE).sum()), tuple(weights))


class Made(NamedTuple):
    """An operator, and how many of the ``channels`` that it makes are one; see `Producer`."""

    order: int
    path: str
    resolution: tuple[int, ...]
    channels: int
    key: str


Makers = dict[int, list[Made]]  # by root


@dataclass(frozen=True)
class FoundGroups:
    """The groups of a walk in order of execution, layers that have to stay, with the reason."""

    groups: tuple[Group, ...]
    fixed: Mapping[str, str]
    _ids: ChannelIds
    _place: NDArray[np.int64]  # by id: group and unit
    _known: dict[bytes, DimMap] = field(default_factory=dict)

    def dim_map(self, ids: Ids) -> DimMap:
        """What positions with these ids hold; one object for equal ids."""
        roots = self._ids.find(ids.reshape(-1))
        key = roots.tobytes()
        if key not in self._known:
            group, unit = self._place[roots].T
            if (roots == roots[0]).all():  # of one unit of others' making: none can go alone
                group, unit = np.full(len(roots), WHOLE), np.zeros(len(roots), dtype=np.int64)
            self._known[key] = DimMap(group, unit)
        return self._known[key]

    def free(self, ids: Ids | None) -> DimMap | None:
        """The same; None where no channel of a group is among them."""
        found = None if ids is None else self.dim_map(ids)
        return found if found is not None and found.free else None


def find_groups(walk: Walk, freeze: Mapping[str, str]) -> FoundGroups:
    """The groups that are left when a walk is over.

    Groups whose name is in ``freeze`` have to stay, with the reason.
    """
    makers = _makers(walk)
    classes, fixed = _classes(walk, makers)
    embedding = embeddings(walk)
    heads = {root for ids in walk.ids.wholes for root in walk.ids.roots(ids)}
    found = [(_group(roots, makers, embedding, heads), roots) for roots in classes]
    found.sort(key=lambda pair: pair[0].order)
    free = []
    for group, roots in _told_apart(found, makers):
        if group.name in freeze:
            fixed.update(dict.fromkeys(group.makers, freeze[group.name]))
        else:
            free.append((group, roots))
    place = np.full((len(walk.ids), 2), [WHOLE, 0])
    for index, (_, roots) in enumerate(free):
        place[roots, 0] = index
        place[roots, 1] = np.arange(len(roots))
    return FoundGroups(tuple(group for group, _ in free), fixed, walk.ids, place)


def _told_apart(
    found: Sequence[tuple[Group, list[int]]], makers: Makers
) -> Iterator[tuple[Group, list[int]]]:
    """Groups that one module makes of several parameters are named after those."""
    first = {}
    for group, roots in found:
        made = min(made for made in makers[roots[0]] if made.path == group.name)
        first[group] = made.key
    for group, roots in found:
        alike = {key for other, key in first.items() if other.name == group.name}
        yield (replace(group, name=first[group]) if len(alike) > 1 else group), roots


def _makers(walk: Walk) -> Makers:
    """For every class of channels the layers that make it, and how many of its channels each."""
    makers: Makers = defaultdict(list)
    for one in walk.producers:
        for root, count in _counts(walk, one.ids):
            makers[root].append(Made(one.order, one.path, one.resolution, count, one.key))
    return makers


def _counts(walk: Walk, ids: Ids) -> Iterable[tuple[int, int]]:
    """Which channels are among these, and how often."""
    roots, counts = np.unique(walk.ids.find(ids), return_counts=True)
    return zip(roots.tolist(), counts.tolist(), strict=True)


def _classes(walk: Walk, makers: Makers) -> tuple[list[list[int]], dict[str, str]]:
    """Classes of channels that appear in the same tensors equally often, and what is fixed."""
    appears: dict[int, list[tuple[str, int, int]]] = defaultdict(list)  # tensor, dim, how often
    for key, value in walk.tensors.items():
        for dim in range(len(value.shape)):
            if (ids := value.ids_along(dim)) is not None:
                for root, count in _counts(walk, ids):
                    appears[root].append((key, dim, count))
    reasons: dict[int, str] = {}
    for ids, reason in walk.ids.frozen:
        for root in walk.ids.roots(ids):
            reasons.setdefault(root, reason)
    classes: dict[object, list[int]] = defaultdict(list)
    fixed: dict[str, str] = {}
    for root in sorted(appears):
        if root in reasons:
            for made in makers.get(root, ()):
                fixed.setdefault(made.path, reasons[root])
        elif root in makers:
            classes[tuple(appears[root])].append(root)
    for members in classes.values():
        if len(members) == 1:
            for made in makers[members[0]]:
                fixed.setdefault(made.path, ALL_COUPLED)
    return [members for members in classes.values() if len(members) > 1], fixed


def _group(roots: Sequence[int], makers: Makers, embedding: set[int], heads: set[int]) -> Group:
    made_by = sorted(set(makers[roots[0]]))
    # beside a head's channels a layer may make one number for it
    unit_size = (max if roots[0] in heads else min)(made.channels for made in made_by)
    return Group(
        name=next(made.path for made in made_by if made.channels == unit_size),
        units=len(roots),
        unit_size=unit_size,
        makers=tuple(dict.fromkeys(made.path for made in made_by)),
        order=made_by[0].order,
        resolution=made_by[0].resolution,
        embedding=roots[0] in embedding and len({made.path for made in made_by}) > 1,
    )
