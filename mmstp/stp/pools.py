"""The pools of a run, one for each of its budgets, which take turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..architecture import Architecture
from ..errors import BudgetError
from ..search.budget import Budget
from ..search.space import SearchSpace
from .pool import ArchitecturePool


class Pools(Mapping[str, ArchitecturePool]):
    """Pools by the label of their budget (`budgets_of`), that of the smallest first.

    In every step another one has its turn: it gives the target, whose distance is its score.

    Args:
        pools: At least one.
        budgets: Theirs, by the same labels.

    Attributes:
        turn: The label of the pool that gives the next target.
    """

    def __init__(
        self, pools: Mapping[str, ArchitecturePool], budgets: Mapping[str, Budget]
    ) -> None:
        self._pools = dict(pools)
        self.budgets = dict(budgets)
        self.turn = next(iter(self._pools))

    @classmethod
    def drawn(
        cls,
        space: SearchSpace,
        budgets: Mapping[str, Budget],
        rows: Mapping[str, NDArray[np.int64]],
        size: int,
        seed: int,
        **options: Any,
    ) -> Pools:
        """A pool for each budget, by `ArchitecturePool.drawn`, of its rows."""
        pools = {
            label: ArchitecturePool.drawn(space, rows[label], size, seed + place, **options)
            for place, label in enumerate(budgets)
        }
        return cls(pools, budgets)

    def __getitem__(self, label: str) -> ArchitecturePool:
        return self._pools[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    @property
    def only(self) -> str:
        """The label, where there is one budget.

        Raises:
            BudgetError: If there are several.
        """
        if len(self) > 1:
            raise BudgetError(
                f'this run has the budgets {", ".join(self)}, each with a pool of its own: say '
                'which one is meant, as in stp.pools[LABEL]'
            )
        return next(iter(self))

    @property
    def draws(self) -> int:
        """How many targets a step has, see `ArchitecturePool.draws`."""
        return next(iter(self.values())).draws

    @property
    def all_best(self) -> str:
        """The best of each pool, as the subject of a sentence with its verb."""
        best = [str(pool.best) for pool in self.values()]
        return f'{" and ".join(best)} {"are" if len(best) > 1 else "is"}'

    def suffix(self, label: str) -> str:
        """What names of a budget's numbers and files end with: nothing, where there is one."""
        return f'-{label}' if len(self) > 1 else ''

    def fields(self) -> dict[str, Any]:
        """Everything that the next draws and drops depend on, in plain types, by name."""
        return {'turn': self.turn} | {
            name + self.suffix(label): value
            for label, pool in self.items()
            for name, value in pool.state_dict().items()
        }

    def draw(self) -> tuple[str, Architecture]:
        """The next target, with the label of its budget; the next larger one has its turn then.

        After the largest it is the smallest again.
        """
        label = self.turn
        self.turn = self._larger(label) or next(iter(self))
        return label, self[label].sample()

    def support(self, space: SearchSpace, label: str, target: Architecture) -> Architecture:
        """What a target is enlarged to, so that a step trains two budgets.

        It is the smallest that also contains a member of the next larger budget's pool, drawn at
        random; for the largest budget any enlargement (Eq. 6).

        Args:
            space: The search space.
            label: Of the budget that the target is from.
            target: Of its pool.
        """
        rng, larger = self[label].rng, self._larger(label)
        if larger is None:
            return space.expand(target, rng)
        return target.joined(rng.choice(list(self[larger].scores)))

    def _larger(self, label: str) -> str | None:
        labels = list(self)
        return next(iter(labels[labels.index(label) + 1 :]), None)
