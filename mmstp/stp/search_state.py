"""The search's state in a checkpoint: written, read, and refused where it is not this run's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ArchitectureError, CheckpointError
from ..search.cost import LATENCY
from ..search.latency_table import difference
from .pool import ArchitecturePool

BUDGETS = 'budgets'  # where the pools of several lie
TABLE = 'latency_table'  # where it lies what the table of the latency was


def pools_state(stp: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The pools, for a checkpoint: of one budget as it is, of several by label.

    With them what tells the table of the latency, where the search depends on one.

    Args:
        stp: An `STP`.
        sizes: How many architectures each pool began with, by label; of none: as many as it has.
    """
    found = {
        label: {
            'pool': pool.state_dict(),
            'pool_size': sizes.get(label, len(pool)),
            'best': str(pool.best),
        }
        for label, pool in stp.pools.items()
    }
    table = _table(stp)
    own = {TABLE: table} if table else {}
    if len(found) > 1:
        return {BUDGETS: found, 'turn': stp.pools.turn, **own}
    return {**found[stp.pools.only], **own}


def has_pools(state: Any) -> bool:
    """Whether it is what `pools_state` gave."""
    return isinstance(state, dict) and bool({'pool', BUDGETS} & state.keys())


def read_search(stp: Any, state: Any) -> tuple[dict[str, int], bool]:
    """Takes the pools of a checkpoint over; nothing changes where they are damaged.

    Args:
        stp: An `STP`, made from the config of the run.
        state: What `PoolHook` put into the checkpoint.

    Returns:
        How many architectures each pool began with, by the label of its budget, and whether the
        last ones are trained alone.

    Raises:
        CheckpointError: If it is damaged, or of another space, other budgets or another table of
            the latency.
    """
    _refuse_other_table(stp, state)
    pools = copy.deepcopy(stp.pools)
    own = _by_budget(list(pools), state)
    sizes = {label: _read_pool(stp, label, pools[label], own[label]) for label in pools}
    if len(pools) > 1:
        if state.get('turn') not in list(pools):
            raise CheckpointError(
                f'the state of the search is damaged: it is the turn of {state.get("turn")!r}; '
                f'expected one of {", ".join(pools)}'
            )
        pools.turn = state['turn']
    alone, teacher = state.get('alone', False), state.get('teacher', False)
    left = max(map(len, pools.values()))
    if type(alone) is not bool or (alone and left > 1):
        raise CheckpointError(
            f'the state of the search is damaged: alone is {alone!r}, with {left} '
            'architectures in a pool'
        )
    taught = stp.survivor is not None and stp.survivor.teacher is not None
    if alone and (stp.survivor is None or teacher != taught):
        raise CheckpointError(
            f'the checkpoint is of a survivor {"with" if teacher else "without"} a teacher: it '
            f'needs the config of its run. Here model.survivor is {stp.survivor!r}'
        )
    if stp.alone and not alone:
        raise CheckpointError(
            'the checkpoint is of the search, and this run trains its survivor already'
        )
    stp.pools = pools
    return sizes, alone


def _table(stp: Any) -> dict[str, Any]:
    """What tells the table of the latency; empty where neither budgets nor space depend on one."""
    limits = [limit for budget in stp.pools.budgets.values() for limit in budget.limits]
    if stp.supernet.space.prune_slow or any(limit.metric == LATENCY for limit in limits):
        found: dict[str, Any] = stp.supernet.cost.latency_fit.table.identity()
        return found
    return {}


def _refuse_other_table(stp: Any, state: Any) -> None:
    there = state.get(TABLE, {}) if isinstance(state, dict) else {}
    if not isinstance(there, dict):
        raise CheckpointError(
            f'the state of the search is damaged: {TABLE} is {there!r:.80}; expected a dict'
        )
    if found := difference(there, _table(stp)):
        raise CheckpointError(
            f'the checkpoint is of a search by another table of the latency (model.latency): '
            f'{found}. It needs the file of its own run'
        )


def _by_budget(labels: list[str], state: Any) -> Mapping[str, Any]:
    """The state of each pool, by the label of its budget."""
    several = isinstance(state, dict) and BUDGETS in state
    if not several and len(labels) == 1:
        return {labels[0]: state}
    found = state[BUDGETS] if several else None
    if not isinstance(found, dict) or found.keys() != set(labels):
        there = ', '.join(map(str, found)) if isinstance(found, dict) else 'a single one'
        raise CheckpointError(
            f'the checkpoint is of a search for other budgets ({there}) than {", ".join(labels)} '
            '(model.target, in percent): it needs the config of its own run'
        )
    return found


def _read_pool(stp: Any, label: str, pool: ArchitecturePool, state: Any) -> int:
    """Takes one over; returns how many architectures it began with."""
    try:
        kept, size = state['pool'], state['pool_size']
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            'the state of the search is damaged: it has no pool, or no pool_size'
        ) from error
    pool.load_state_dict(kept)
    members, budget = list(pool.scores), stp.pools.budgets[label]
    try:
        used = budget.used(stp.supernet.cost, [*map(stp.supernet.space.check, members)])
    except ArchitectureError as error:
        raise CheckpointError(f'the pool of the checkpoint is of another space: {error}') from error
    for place in np.flatnonzero(~budget.meets(used))[:1].tolist():
        raise CheckpointError(
            f'the checkpoint has {members[place]} in its pool, which uses {used[place]:.1%} of '
            f'{budget}: that does not meet the budget within {budget.tolerance:.1%}. It needs the '
            'config of its own run'
        )
    if type(size) is not int or not len(members) <= size <= stp.pool_size:
        raise CheckpointError(
            f'the checkpoint says that its pool began with {size!r} architectures; expected a '
            f'whole number from {len(members)} to {stp.pool_size} (model.pool.size)'
        )
    return size
