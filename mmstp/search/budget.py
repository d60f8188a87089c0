"""What a subnet may cost, and the architectures that cost that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..architecture import Architecture
from ..errors import BudgetError
from .cost import METRICS, CostModel
from .space import SearchSpace

# spaces up to this size are enumerated, larger ones searched at random
ENUMERABLE = 1_000_000


@dataclass(frozen=True)
class Budget:
    """What a subnet may cost.

    Attributes:
        metric: ``'macs'`` or ``'params'``.
        target: The cost wanted, as a number of multiply-adds or parameters.
        tolerance: The largest deviation accepted, relative to ``target``.
    """

    metric: str
    target: float
    tolerance: float

    @classmethod
    def of(
        cls, target: float, metric: str, tolerance: float, space: SearchSpace, cost: CostModel
    ) -> Budget:
        """A budget from a config.

        Args:
            target: A fraction of the dense network's cost if at most 1, else a number.
            metric: ``'macs'`` or ``'params'``.
            tolerance: Relative to the target.
            space: The search space.
            cost: Its cost model.

        Raises:
            BudgetError: If a value is out of range.
        """
        if metric not in METRICS:
            raise BudgetError(f'metric={metric!r}: expected one of {METRICS}')
        if type(target) not in (int, float) or not 0 < target < np.inf:
            raise BudgetError(f'target={target!r}: expected a fraction in (0, 1] or a number above')
        if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
            raise BudgetError(f'tolerance={tolerance!r}: expected a fraction in [0, 1)')
        dense = int(cost.count([space.largest], metric)[0])
        return cls(metric, target * dense if target <= 1 else float(target), tolerance)

    def meets(self, costs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which costs lie within the tolerance."""
        return np.abs(costs - self.target) <= self.tolerance * self.target


def feasible_rows(
    space: SearchSpace, cost: CostModel, budget: Budget, wanted: int, seed: int = 0
) -> NDArray[np.int64]:
    """Architectures that meet the budget, as rows of the space.

    All of them where the space has at most `ENUMERABLE` members; else about ``wanted``, found by
    random walks from random members towards the budget.

    Raises:
        BudgetError: If there is none; the message says what range can be met and what is nearest.
    """
    if space.size <= ENUMERABLE:
        rows = space.all_rows()
    else:
        rows = _walk_to_budget(space, cost, budget, wanted, seed)
    costs = cost.count(rows, budget.metric)
    met = rows[budget.meets(costs)]
    if len(met):
        return met
    low, dense = (int(c) for c in cost.count([space.smallest, space.largest], budget.metric))
    nearest = costs[np.abs(costs - budget.target).argsort(kind='stable')][:1]
    hint = '' if budget.target > 100 else ' (above 1 it is a number; 15 % is target=0.15)'
    raise BudgetError(
        f'no architecture meets target={budget.target:,.0f} {budget.metric}{hint} '
        f'({budget.target / dense:.2%} of the dense network) within {budget.tolerance:.2%}: '
        f'this space reaches {low:,} to {dense:,} {budget.metric} ({low / dense:.2%} to 100%), the '
        f'nearest is {int(nearest[0]):,} ({nearest[0] / dense:.2%}). Change target, tolerance or '
        'space (more widths, a smaller divisor)'
    )


def most_uniform(space: SearchSpace, rows: NDArray[np.int64]) -> Architecture:
    """Of some architectures, the one whose depths and widths are most alike across the stages.

    It is what one would choose without a search.
    """
    chosen = [space.decode(row) for row in rows]
    return chosen[int(unevenness(space, chosen).argmin())]


def unevenness(space: SearchSpace, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
    """How far depths and widths differ across the stages: the sum of standard deviations.

    Depths are taken as parts of the dense network's.
    """
    depths = np.array([a.depths for a in architectures]) / space.largest.depths
    widths = np.array([a.widths for a in architectures])
    found: NDArray[np.float64] = depths.std(axis=1) + widths.std(axis=1)
    return found


def _walk_to_budget(
    space: SearchSpace, cost: CostModel, budget: Budget, wanted: int, seed: int
) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    sizes = np.array(space.sizes)
    found: NDArray[np.int64] = np.zeros((0, len(sizes)), dtype=np.int64)
    for _ in range(20):
        rows = rng.integers(0, sizes, size=(max(2 * wanted, 1000), len(sizes)))
        for _ in range(3 * int(sizes.sum())):
            costs = cost.count(rows, budget.metric)
            outside = np.flatnonzero(~budget.meets(costs))
            if not len(outside):
                break
            # one random choice of each gets a step smaller or larger, as the budget asks
            at = rng.integers(0, len(sizes), size=len(outside))
            step = np.where(costs[outside] > budget.target, -1, 1)
            rows[outside, at] = np.clip(rows[outside, at] + step, 0, sizes[at] - 1)
        found = np.unique(np.concatenate([found, rows]), axis=0)
        if budget.meets(cost.count(found, budget.metric)).sum() >= wanted:
            break
    return found
