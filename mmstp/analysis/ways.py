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

Way = tuple[SizedCall[DimMap], ...]


def find_ways(
    traced: Sequence[Sequence[SizedCall[DimMap]]], without: Collection[str]
) -> dict[str, tuple[Way, ...]]:
    """For every module that gives sizes of channels to operators, all sized calls of its forward.

    A module that is called several times has to make the same calls each time; where it does not
    (one that layers of different heads share), they count as calls of the module around it.

    Args:
        traced: The calls of every trace, in order.
        without: Paths of modules that run a forward of their own when they are narrow; the calls
            inside it are not those of the trace.

    Returns:
        By path, the ways through the forward in these traces that differ.
    """
    found = [[c for c in calls if set(without).isdisjoint(c.paths)] for calls in traced]
    times = [_each_time(calls) for calls in found]

    @functools.cache
    def same_each_time(path: str) -> bool:
        return all(
            _alike(first, other)
            for time in times
            for first, *others in [time.get(path, [[]])]
            for other in others
        )

    callers = {
        next(path for path in (*reversed(call.paths), '') if same_each_time(path))
        for call in itertools.chain(*found)
        if call.runs or call.counts
    }
    ways: dict[str, tuple[Way, ...]] = {}
    for path in callers:
        for time in times:
            way = tuple(time.get(path, [[]])[0])
            if not any(_alike(way, other) for other in ways.get(path, ())):
                ways[path] = (*ways.get(path, ()), way)
    return ways


def _each_time(
    calls: Sequence[SizedCall[DimMap]],
) -> Mapping[str, list[list[SizedCall[DimMap]]]]:
    """By module, the calls in each of its forwards."""
    times: dict[str, dict[str, list[SizedCall[DimMap]]]] = defaultdict(lambda: defaultdict(list))
    for call in calls:
        times['']['once'].append(call)
        for path, key in call.modules:
            if path:
                times[path][key].append(call)
    return {path: list(found.values()) for path, found in times.items()}


def _alike(first: Sequence[SizedCall[DimMap]], second: Sequence[SizedCall[DimMap]]) -> bool:
    return len(first) == len(second) and all(a.alike(b) for a, b in zip(first, second, strict=True))
