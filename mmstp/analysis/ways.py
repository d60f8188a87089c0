"""The ways through a module's forward: the sized calls that it makes, one after the other.

A forward that windows its input makes other calls where there is one window than where there are
several; each is a way, known from a trace of its own.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from .groups import DimMap
from .records import SizedCall

Call = SizedCall[DimMap]
Way = tuple[Call, ...]


def find_ways(
    traced: Sequence[Sequence[Call]], without: Collection[str]
) -> dict[str, tuple[Way, ...]]:
    """For every module that gives sizes of channels to operators, all sized calls of its forward.

    A module that is called several times has to make the same calls each time; where it does not
    (one that layers of different heads share), they count as calls of the module around it. Calls
    inside the modules ``without``, which run a forward of their own when they are narrow, do not
    count. Of the ways that the traces take through a forward those are returned that differ.
    """
    found = [[c for c in calls if set(without).isdisjoint(c.paths)] for calls in traced]
    if not any(c.supplies == 'constant' and c.counts for c in itertools.chain(*found)):
        # constants are made for much else, in other ways each time: masks that are kept, positions
        found = [[c for c in calls if c.supplies != 'constant'] for calls in found]
    times = [_each_time(calls) for calls in found]

    @functools.cache
    def same_each_time(path: str) -> bool:
        return all(len(set(map(_key, time.get(path, ())))) <= 1 for time in times)

    callers = {
        next(path for path in (*reversed(call.paths), '') if same_each_time(path))
        for call in itertools.chain(*found)
        if call.runs or call.counts
    }
    ways: dict[str, tuple[Way, ...]] = {}
    for path in callers:
        differ: dict[object, Way] = {}
        for time in times:
            way = tuple(time.get(path, [[]])[0])
            differ.setdefault(_key(way), way)
        ways[path] = tuple(differ.values())
    return ways


def _each_time(calls: Sequence[Call]) -> Mapping[str, list[list[Call]]]:
    """By module, the calls in each of its forwards."""
    times: dict[str, dict[str, list[Call]]] = defaultdict(lambda: defaultdict(list))
    for call in calls:
        times['']['once'].append(call)
        for path, key in call.modules:
            if path:
                times[path][key].append(call)
    return {path: list(found.values()) for path, found in times.items()}


def _key(calls: Sequence[Call]) -> tuple[object, ...]:
    """Equal where all calls are alike."""
    return tuple(call.key for call in calls)
