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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .blocks import Chain
from .ids import ChannelIds, Ids
from .walk import Walk

WHOLE = -1  # a position that belongs to no group is always kept


def kind_of(path: str) -> str:
    """A path without numbers: modules that play one role in repeated blocks share it."""
    parts = path.split('.')
    return '.'.join('*' if part.isdigit() else part.rstrip('0123456789') for part in parts)


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


# by root: order, path and resolution of a maker, and how many of its channels are the root's
Makers = dict[int, list[tuple[int, str, tuple[int, ...], int]]]


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


def find_groups(walk: Walk, chains: Sequence[Chain], freeze: Mapping[str, str]) -> FoundGroups:
    """The groups that are left when a walk is over.

    Residual streams of the chains tell what an embedding is. Groups of a kind (`kind_of`) in
    ``freeze`` have to stay, with the reason.
    """
    makers = _makers(walk)
    classes, fixed = _classes(walk, makers)
    reductions = [ids for one in walk.walked[0].reductions for ids in one.dims.values()]
    normalised = {root for ids in reductions for root in walk.ids.roots(ids)}
    embedding = {root for chain in chains for root in chain.residual if root in normalised}
    heads = {root for ids in walk.ids.wholes for root in walk.ids.roots(ids)}
    free = []
    for roots in classes:
        group = _group(roots, makers, embedding, heads)
        if group.kind in freeze:
            fixed.update(dict.fromkeys(group.makers, freeze[group.kind]))
        else:
            free.append((group, roots))
    free.sort(key=lambda pair: pair[0].order)
    place = np.full((len(walk.ids), 2), [WHOLE, 0])
    for index, (_, roots) in enumerate(free):
        place[roots, 0] = index
        place[roots, 1] = np.arange(len(roots))
    return FoundGroups(tuple(group for group, _ in free), fixed, walk.ids, place)


def _makers(walk: Walk) -> Makers:
    """For every class of channels the layers that make it, and how many of its channels each."""
    makers: Makers = defaultdict(list)
    for producer in walk.producers:
        for root, count in _counts(walk, producer.ids):
            makers[root].append((producer.order, producer.path, producer.resolution, count))
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
            for _, path, *_ in makers.get(root, ()):
                fixed.setdefault(path, reasons[root])
        elif root in makers:
            classes[tuple(appears[root])].append(root)
    for members in classes.values():
        if len(members) == 1:
            for _, path, *_ in makers[members[0]]:
                fixed.setdefault(path, 'all its channels are coupled')
    return [members for members in classes.values() if len(members) > 1], fixed


def _group(roots: Sequence[int], makers: Makers, embedding: set[int], heads: set[int]) -> Group:
    made_by = sorted(set(makers[roots[0]]))
    # beside a head's channels a layer may make one number for it
    unit_size = (max if roots[0] in heads else min)(count for *_, count in made_by)
    return Group(
        name=next(path for _, path, _, count in made_by if count == unit_size),
        units=len(roots),
        unit_size=unit_size,
        makers=tuple(dict.fromkeys(path for _, path, *_ in made_by)),
        order=made_by[0][0],
        resolution=made_by[0][2],
        embedding=roots[0] in embedding,
    )
