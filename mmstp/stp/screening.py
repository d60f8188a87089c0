"""Which candidates a search begins with: as many as it can visit, the best by a screening."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.runner import Runner

from .hooks.statistics import batch_size_of, on_batches

# candidates for each iteration of the run, with a forward pass for each: of a short run that is a
# few hundredths, of a long one all that were drawn are fewer
SCREENED = 0.2


def begin_search(runner: Runner, stp: Any, end: int, visits: int | None, batches: int) -> None:
    """Cuts the pools to what can be visited often enough, and says what is left of them.

    Args:
        runner: About to train.
        stp: Its `STP`.
        end: Iterations of the search; each of its pools has the same share of them.
        visits: How often each candidate is to be visited on average; None: the pools stay as they
            are, but where there are no iterations for each of them: one is chosen at once.
        batches: On which candidates are screened; 0: those that stay are random.
    """
    drawn = {label: len(pool) for label, pool in stp.pools.items()}
    own = end // len(drawn)
    draws = own * stp.pools.draws
    wanted = max(drawn.values()) if visits is None and own else max(1, draws // (visits or 1))
    if batches and max(drawn.values()) > 1:
        for pool in stp.pools.values():
            most = round(SCREENED * runner.max_iters / len(drawn))
            pool.shrink(len(pool) - max(wanted, most))
        images = batches * batch_size_of(runner.train_dataloader)
        images = on_batches(stp.model, runner.train_dataloader, images, partial(screen, stp))
    for label, pool in stp.pools.items():
        name = f'pool{stp.pools.suffix(label)}'
        if batches and drawn[label] > 1:
            scores = sorted(pool.scores.values())
            runner.logger.info(
                f'{name}: screened {len(scores)} of {drawn[label]} architectures on {images} '
                f'images; distances to the main network from {scores[0]:.4f} to {scores[-1]:.4f}'
            )
        pool.shrink(len(pool) - wanted)
        _tell(runner, name, len(pool), drawn[label], own, draws, visits, batches, searched=end > 0)


def _tell(
    runner: Runner,
    name: str,
    size: int,
    drawn: int,
    end: int,
    draws: int,
    visits: int | None,
    batches: int,
    searched: bool,
) -> None:
    """Logs what a pool begins with, and that has ``draws`` visits in ``end`` iterations.

    ``searched`` is whether any pool has iterations.
    """
    if end:
        runner.logger.info(
            f'{name}: {size} architecture{"s" * (size > 1)}, {draws / size:.1f} visits each in the '
            f'{end} iterations of the search'
        )
    if size == 1 < drawn and not batches:
        why = 'it ends where it begins, and PoolHook.screen is 0'
        advice = 'Give PoolHook a later end, or screen=1'
        if searched:
            why = f'its {end} iterations are too few to visit two architectures {visits or 1} times'
            advice = 'Train longer, or give PoolHook a later end or fewer visits'
        runner.logger.warning(
            f'{name}: there is no search: {why}, so one of {drawn} was drawn at random. {advice}'
        )
    elif visits is None and size > 1 and draws / size < 5:
        runner.logger.warning(
            f'{name} has {size} architectures and shrinks within {end} iterations: '
            f'{draws / size:.1f} visits each, fewer than the 5 that scores need to mean '
            'anything; use PoolHook.visits=10, or train longer'
        )


@torch.no_grad()
def screen(stp: Any, batches: Iterable[Mapping[str, Any]]) -> None:
    """Scores all candidates by their distance to the main network on the same images (Eq. 8).

    It says how much of a trained network a candidate keeps. Weights and norm statistics stay as
    they are.

    Args:
        stp: An `STP`; the distances go into its pools, as a first visit of each.
        batches: As `on_batches` gives them.
    """
    supernet, task = stp.supernet, stp.task
    candidates = [(pool, one) for pool in stp.pools.values() for one in pool.scores]
    count, mode = 0, stp.training
    distances = torch.zeros(len(candidates), dtype=torch.float64)
    stp.train()  # norms normalise by the batch, as they will in the search
    for batch in batches:
        with supernet.activate(supernet.space.largest):
            teacher = task.outputs(stp.model, **batch)
        for i, (_, candidate) in enumerate(candidates):
            with supernet.activate(candidate):
                distances[i] += float(task.distance(task.outputs(stp.model, **batch), teacher))
        count += 1
    stp.train(mode)
    all_reduce(distances, 'mean')  # over the ranks
    for (pool, one), distance in zip(candidates, (distances / count).tolist(), strict=True):
        pool.update(one, distance)
