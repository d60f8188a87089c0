"""What is logged of the pools."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from mmengine.runner import Runner

from ...architecture import Architecture
from ..algorithm import STP


def log_pool(runner: Runner, stp: STP, label: str, spread: float) -> None:
    """A pool's curves: how many are left, the best score, and how different they are."""
    pool, suffix, hub = stp.pools[label], stp.pools.suffix(label), runner.message_hub
    hub.update_scalar(f'train/pool_size{suffix}', len(pool))
    best = pool.scores[pool.best]
    if best is not None:
        hub.update_scalar(f'train/best_score{suffix}', best)
    hub.update_scalar(f'train/pool_spread{suffix}', spread)


def report(runner: Runner, stp: STP, label: str, step: int) -> None:
    """A line of the log with a pool's best architecture; its numbers for the visualizer.

    Args:
        runner: The run.
        stp: Its `STP`.
        label: Of the budget.
        step: The iteration that the numbers stand at.
    """
    pool, suffix = stp.pools[label], stp.pools.suffix(label)
    best = pool.best
    described = stp.supernet.describe(best)
    metrics = dict.fromkeys(['macs', *(limit.metric for limit in stp.pools.budgets[label].limits)])
    ratios = {metric: described[f'{metric}_ratio'] for metric in metrics}
    score = pool.scores[best]
    scored = '(not visited yet)' if score is None else f'with score {score:.4f}'
    runner.logger.info(
        f'pool{suffix}: {len(pool)} left, best {best} {scored}, '
        + ', '.join(f'{ratio:.2%} of the {metric}' for metric, ratio in ratios.items())
    )
    names = [stage.name for stage in stp.supernet.space.stages]
    scalars = {
        **{f'{metric}_ratio': ratio for metric, ratio in ratios.items()},
        **{f'depth/{name}': d for name, d in zip(names, best.depths, strict=True)},
        **{f'width/{name}': w for name, w in zip(names, best.widths, strict=True)},
    }
    own = {f'best{suffix}/{name}': value for name, value in scalars.items()}
    runner.visualizer.add_scalars(own, step=step)


def spread(architectures: Iterable[Architecture], largest: Architecture) -> float:
    """How different architectures are (Fig. 6): the mean squared distance to their mean.

    Depths are divided by those of the largest, so that every number lies between 0 and 1.
    """
    full = np.array([*largest.depths, *largest.widths])
    vectors = np.array([[*a.depths, *a.widths] for a in architectures]) / full
    return float(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean())
