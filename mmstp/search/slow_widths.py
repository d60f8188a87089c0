"""Widths that save no time: on a device a few channels fewer may cost as much."""

from __future__ import annotations

from dataclasses import replace

from .cost import CostModel
from .space import SearchSpace

# of the latency: what a width has to save against the next larger one
_LEAST = 1e-3


def slow_widths(space: SearchSpace, cost: CostModel) -> dict[str, tuple[float, ...]]:
    """By the name of a stage, widths that are no faster than the next larger one that is.

    All other choices are the dense network's.

    Raises:
        LatencyError: If the cost model has no latency.
    """
    found = {}
    dense = space.largest
    for index, stage in enumerate(space.stages):
        trial = [
            replace(dense, widths=(*dense.widths[:index], width, *dense.widths[index + 1 :]))
            for width in stage.widths
        ]
        *others, (_, least) = zip(stage.widths, cost.latency(trial).tolist(), strict=True)
        slow = []
        for width, latency in reversed(others):
            if latency > least * (1 - _LEAST):
                slow.append(width)
            else:
                least = latency
        if slow:
            found[stage.name] = tuple(sorted(slow))
    return found
