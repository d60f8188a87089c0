"""Several budgets of one run: their labels, their order, and that none of them is another's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ..errors import BudgetError
from .budget import Budget, feasible_rows
from .cost import CostModel
from .space import SearchSpace

Target = float | Mapping[str, float] | Sequence[float | Mapping[str, float]]


def budgets_of(
    target: Target, metric: str, tolerance: float, space: SearchSpace, cost: CostModel
) -> dict[str, Budget]:
    """The budgets of a config, the smallest first.

    Args:
        target: As `Budget.of` has it, or a list of such.
        metric: As there, like the others.
        tolerance: See there.
        space: See there.
        cost: See there.

    Returns:
        Budgets by label: what the targets are in percent of the dense network, such as ``'15'``;
        that of a dict with its metrics, ``'macs-35-params-40'``.

    Raises:
        BudgetError: If an entry is none, or two are the same.
    """
    entries = target if isinstance(target, (list, tuple)) else [target]
    if not entries:
        raise BudgetError(f'target={target!r}: expected at least one budget')
    found: dict[str, Budget] = {}
    for place, entry in enumerate(entries):
        field = f'target[{place}]' if isinstance(target, (list, tuple)) else 'target'
        budget = Budget.of(entry, metric, tolerance, space, cost, field)
        label = _label(budget, isinstance(entry, Mapping))
        if label in found:
            raise BudgetError(
                f'target={target!r}: two budgets are {label}; expected some that differ more'
            )
        found[label] = budget
    # the part of a budget that the dense network uses: several times the smallest; by name where
    # two are alike, since a run is the same in whatever order its config has them
    order = {
        label: (-float(own.used(cost, space.largest)[0]), label) for label, own in found.items()
    }
    return {label: found[label] for label in sorted(found, key=order.__getitem__)}


def _label(budget: Budget, by_metric: bool) -> str:
    return '-'.join(
        f'{limit.metric}-' * by_metric + percent(limit.target / limit.dense)
        for limit in sorted(budget.limits, key=lambda limit: limit.metric)
    )


def percent(fraction: float) -> str:
    """The label of a budget that is this fraction of the dense network: ``'15'``, ``'12.5'``."""
    return f'{100 * fraction:.4g}'


def find_budgets(budgets: Mapping[str, Budget], text: str) -> list[str]:
    """Labels of the budgets that a text names: by label, else by the number of the only limit."""
    if text in budgets:
        return [text]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    found = []
    for label, budget in budgets.items():
        first, *others = budget.limits
        numbers = [] if others else [first.target, first.target / first.dense]
        if any(math.isclose(number, own) for own in numbers):
            found.append(label)
    return found


def rows_by_budget(
    space: SearchSpace, cost: CostModel, budgets: Mapping[str, Budget], wanted: int, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """Of each budget the architectures that meet it, by `feasible_rows`.

    Raises:
        BudgetError: If there is none, or if one meets two budgets.
    """
    found = {
        label: feasible_rows(space, cost, budget, wanted, seed) for label, budget in budgets.items()
    }
    for own, other in permutations(budgets, 2):
        both = budgets[other].meets(budgets[other].used(cost, found[own]))
        for place in np.flatnonzero(both)[:1]:
            raise BudgetError(
                f'target: the budgets {own} and {other} share members, such as '
                f'{space.decode(found[own][place])}, which meets both within '
                f'{budgets[own].tolerance:.2%}. Take budgets that are further apart, or a smaller '
                'tolerance'
            )
    return found
