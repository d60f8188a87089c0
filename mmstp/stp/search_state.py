"""The search's state in a checkpoint: read, and refused where it is not that of this run."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from ..errors import ArchitectureError, CheckpointError


def read_search(stp: Any, state: Any) -> tuple[int, bool]:
    """Takes the pool of a checkpoint over; nothing changes where it is damaged.

    Args:
        stp: An `STP`, made from the config of the run.
        state: What `PoolHook` put into the checkpoint.

    Returns:
        How many architectures the pool began with, and whether the last one is trained alone.

    Raises:
        CheckpointError: If it is damaged, or of another space or budget.
    """
    try:
        kept, size = state['pool'], state['pool_size']
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            'the state of the search is damaged: it has no pool, or no pool_size'
        ) from error
    pool = copy.deepcopy(stp.pool)
    pool.load_state_dict(kept)
    members, budget = list(pool.scores), stp.budget
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
    alone, teacher = state.get('alone', False), state.get('teacher', False)
    if type(alone) is not bool or (alone and len(members) > 1):
        raise CheckpointError(
            f'the state of the search is damaged: alone is {alone!r}, with {len(members)} '
            'architectures in the pool'
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
    stp.pool = pool
    return size, alone
