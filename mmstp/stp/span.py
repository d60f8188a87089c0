"""When a search begins and ends, in iterations of the training."""

from __future__ import annotations

from ..errors import OptionError


def search_span(begin: float, end: float, iterations: int, alone_after: bool) -> tuple[int, int]:
    """After how many iterations the search begins, and after how many one is left.

    Args:
        begin: The part of the training before the search (`PoolHook`).
        end: The part after which a single architecture is left.
        iterations: Of the whole training.
        alone_after: Whether that one is still to be trained alone.

    Raises:
        OptionError: If it ends before it begins, or something would have no iterations.
    """
    if iterations < 1:
        raise OptionError(
            f'train_cfg: the training has {iterations} iterations; expected max_epochs or '
            'max_iters above 0, and a batch of train_dataloader at least (batch_size, drop_last)'
        )
    if begin > end:
        raise OptionError(
            f'PoolHook.begin={begin}: the search begins after its end, PoolHook.end={end}'
        )
    first, last = round(begin * iterations), max(1, round(end * iterations)) if end else 0
    if begin and not first:
        raise OptionError(
            f'PoolHook.begin={begin}: of {iterations} iterations that is none for the main '
            'network. Train longer, or take a larger one, or 0'
        )
    if first >= iterations:
        raise OptionError(
            f'PoolHook.begin={begin}: the main network is trained alone for all {first} '
            'iterations, and no candidate is looked at. Train longer, or take a smaller one'
        )
    if alone_after and last >= iterations:
        raise OptionError(
            f'PoolHook.end={end}: the search takes all {last} iterations and leaves none '
            'for the survivor. Train longer, take a smaller one, or model.survivor=False'
        )
    return first, last
