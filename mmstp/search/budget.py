"""What a subnet may cost, and the architectures that cost that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..architecture import Architecture
from ..config_fields import suggestion
from ..errors import BudgetError
from .cost import LATENCY, METRICS, Architectures, CostModel, amount
from .space import SearchSpace

# spaces up to this size are enumerated, larger ones searched at random
ENUMERABLE = 1_000_000
# relative: what a division rounds off is no deviation from a target
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Limit:
    """What a subnet may cost by one metric.

    Attributes:
        metric: One of `CostModel.metrics`.
        target: The cost, as a number.
        dense: The dense network's.
    """

    metric: str
    target: float
    dense: float

    def __str__(self) -> str:
        share = self.target / self.dense
        return f'{amount(self.metric, self.target)} ({share:.2%} of the dense network)'


@dataclass(frozen=True)
class Budget:
    """What a subnet may cost: it uses one limit fully, and exceeds none.

    Attributes:
        limits: One or several, each of another metric.
        tolerance: The largest deviation accepted, relative to a target.
    """

    limits: tuple[Limit, ...]
    tolerance: float

    @classmethod
    def of(
        cls,
        target: float | Mapping[str, float],
        metric: str,
        tolerance: float,
        space: SearchSpace,
        cost: CostModel,
        field: str = 'target',
    ) -> Budget:
        """A budget from a config.

        Args:
            target: A fraction of the dense network's cost if at most 1, else a number (of
                milliseconds for ``'latency'``); of several limits one by metric:
                ``dict(macs=0.35, params=0.4)``.
            metric: What a single one counts, a name that `CostModel.count` takes; a dict names
                its own.
            tolerance: Relative to the target.
            space: The search space.
            cost: Its cost model.
            field: Where it stands in the config, for messages.

        Raises:
            BudgetError: If a value is out of range, or there is no table of the latency.
        """
        several = isinstance(target, Mapping)
        known = (*METRICS, LATENCY)
        if not isinstance(metric, str):
            raise BudgetError(f'metric={metric!r}: accepted are {", ".join(known)}')
        targets = dict(target) if isinstance(target, Mapping) else {metric: target}
        if not targets:
            raise BudgetError(f'{field}={target!r}: expected a number for at least one metric')
        if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
            raise BudgetError(f'tolerance={tolerance!r}: expected a fraction in [0, 1)')
        limits = []
        for name, value in targets.items():
            entry = f'{field}[{name!r}]' if several else field
            if name not in known:
                at = f'{field} has no metric {name!r}' if several else f'metric={name!r}'
                raise BudgetError(f'{at}: {suggestion(str(name), known)}')
            if type(value) not in (int, float) or not 0 < value < 1e30:
                raise BudgetError(
                    f'{entry}={value!r}: expected a fraction in (0, 1] or a number above 1'
                )
            (dense,) = cost.count(space.largest, name).tolist()
            number = value * dense if value <= 1 else float(value)
            limits.append(Limit(name, number, dense))
        return cls(tuple(limits), tolerance)

    def used(self, cost: CostModel, architectures: Architectures) -> NDArray[np.float64]:
        """The part of the budget that each architecture uses, shape (architectures,).

        Of several limits that of which it uses the largest part counts.
        """
        parts = [cost.count(architectures, limit.metric) / limit.target for limit in self.limits]
        found: NDArray[np.float64] = np.max(parts, axis=0)
        return found

    def meets(self, used: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which parts lie within the tolerance of the whole budget."""
        return np.abs(used - 1) <= self.tolerance + _ROUNDING

    def __str__(self) -> str:
        return ' and '.join(map(str, self.limits))


def feasible_rows(
    space: SearchSpace, cost: CostModel, budget: Budget, wanted: int, seed: int = 0
) -> NDArray[np.int64]:
    """Architectures that meet the budget, as rows of the space; each is another network.

    All of them where the space has at most `ENUMERABLE` members; else about ``wanted``, found by
    random walks from random members towards the budget.

    Raises:
        BudgetError: If there is none; the message says what range can be met and what is nearest.
    """
    if space.size <= ENUMERABLE:
        rows = space.all_rows()
    else:
        rows = _walk_to_budget(space, cost, budget, wanted, seed)
    used = budget.used(cost, rows)
    met = space.distinct(rows[budget.meets(used)])
    if len(met):
        return met
    nearest = rows[np.abs(used - 1).argmin()]
    ranges, at, too_low = [], [], []
    for limit in budget.limits:
        costs = cost.count(np.stack([space.encode(space.smallest), nearest]), limit.metric)
        low, own = costs.tolist()
        reached = amount(limit.metric, low, limit.dense)
        ranges.append(f'{reached} ({low / limit.dense:.2%} to 100%)')
        at.append(f'{amount(limit.metric, own)} ({own / limit.dense:.2%})')
        if low > limit.target * (1 + budget.tolerance):
            too_low.append(limit.metric)
    percent = any(  # milliseconds may well be few
        (limit.dense if limit.metric == LATENCY else 1) < limit.target <= 100
        for limit in budget.limits
    )
    hint = ' (above 1 it is a number; 15 % is target=0.15)' if percent else ''
    which = f'; too low for {" and ".join(too_low)}' if too_low and len(budget.limits) > 1 else ''
    raise BudgetError(
        f'no architecture meets target={budget}{hint} within {budget.tolerance:.2%}{which}: this '
        f'space reaches {" and ".join(ranges)}, the nearest is {" and ".join(at)}. Change target, '
        'tolerance or space (more widths, a smaller divisor)'
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
            used = budget.used(cost, rows)
            outside = np.flatnonzero(~budget.meets(used))
            if not len(outside):
                break
            # one random choice of each gets a step smaller or larger, as the budget asks
            at = rng.integers(0, len(sizes), size=len(outside))
            step = np.where(used[outside] > 1, -1, 1)
            rows[outside, at] = np.clip(rows[outside, at] + step, 0, sizes[at] - 1)
        found = space.distinct(np.concatenate([found, rows]))
        if budget.meets(budget.used(cost, found)).sum() >= wanted:
            break
    return found
