"""Which subnets keep most of the main network as it is: screening, then successive halving.

Nothing is trained. Those that the screening leaves are evaluated on a few images, the better half
on twice as many, and so on. In a round all see the same images with the same augmentation, so that
they can be compared in pairs.

References:
    Jamieson and Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter
    Optimization*, AISTATS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from ..analysis.eval_state import eval_mode
from ..architecture import Architecture
from ..search.budget import Budget, feasible_rows
from .hooks.statistics import calibrate_on, on_batches
from .options import refuse_not_finite
from .pools import Pools
from .screening import screen

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """A subnet in the last round that it was in.

    Attributes:
        architecture: The subnet's.
        images: How many it saw in that round.
        distance: To the main network (Eq. 8), both in eval mode; the mean over the batches.
        behind: How much that is above the distance of the best subnet, on the same images.
        error: The standard error of ``behind``, over the batches; NaN of a single one.
    """

    architecture: Architecture
    images: int
    distance: float
    behind: float
    error: float


def propose(
    stp: Any,
    budget: Budget,
    dataloader: DataLoader,
    screened: int,
    candidates: int,
    num_images: int,
) -> None:
    """Puts those into the pool that meet a budget and are nearest to the main network (Eq. 8).

    Args:
        stp: An `STP` with its main network, whose pool is another then.
        budget: Any.
        dataloader: Of whose images some are taken to screen on.
        screened: How many architectures are screened, of those that meet the budget.
        candidates: How many of them stay.
        num_images: To screen on.

    Raises:
        BudgetError: If no architecture meets the budget.
    """
    space, logger = stp.supernet.space, MMLogger.get_current_instance()
    rows = feasible_rows(space, stp.supernet.cost, budget, screened)
    stp.pools = Pools.drawn(space, {'': budget}, {'': rows}, screened, seed=0)
    count = len(stp.pool)
    logger.info(
        f'{budget} within {budget.tolerance:.1%}: {len(rows):,} architectures of '
        f'{space.size:,}, {count} are screened on {num_images} images'
    )

    def logged(batches: Iterable[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches, start=1):
            yield batch
            logger.info(f'screened on batch {number}, of {len(batch["inputs"])} images')

    on_batches(stp.model, dataloader, num_images, lambda found: screen(stp, logged(found)))
    stp.pool.shrink(count - candidates)


def halve(
    stp: Any,
    candidates: Sequence[Architecture],
    train_dataloader: DataLoader,
    dataloader: DataLoader,
    num_images: int,
) -> list[Evaluated]:
    """Evaluates subnets with norm statistics of their own, as they would be exported.

    Args:
        stp: An `STP` with its main network, which is not changed.
        candidates: At least one. All are cut out at once.
        train_dataloader: Of whose images the statistics are, of as many as a round has.
        dataloader: Images to compare on, such as the same.
        num_images: In the first round; twice as many in each that follows, until two subnets were
            compared or a round had all there are.

    Returns:
        All of them, the best first.

    Raises:
        NotFiniteError: If a distance is not finite.
    """
    rounds: list[tuple[int, dict[Architecture, NDArray[np.float64]]]] = []
    left, available = list(candidates), len(dataloader.dataset)  # type: ignore[arg-type]
    while True:
        networks = {}
        for architecture in left:
            networks[architecture] = network = stp.export(architecture)
            calibrate_on(network, train_dataloader, num_images)
        found = distances(stp, list(networks.values()), dataloader, num_images)
        means = dict(zip(networks, found.mean(axis=1).tolist(), strict=True))
        refuse_not_finite({f'the distance of {a}': mean for a, mean in means.items()})
        rounds.append((min(num_images, available), dict(zip(networks, found, strict=True))))
        order = sorted(left, key=means.__getitem__)
        best = order[0]
        MMLogger.get_current_instance().info(
            f'{len(left)} subnets on {rounds[-1][0]} images: best {best}, distance '
            f'{means[best]:.4f}'
        )
        if len(left) <= 2 or num_images >= available:
            break
        left, num_images = order[: math.ceil(len(left) / 2)], 2 * num_images
    last = {}
    for images, evaluated in rounds:
        for architecture, own in evaluated.items():
            behind = own - evaluated[best]
            error = behind.std(ddof=1) / math.sqrt(len(own)) if len(own) > 1 else math.nan
            last[architecture] = Evaluated(
                architecture, images, float(own.mean()), float(behind.mean()), float(error)
            )
    return sorted(last.values(), key=lambda one: (-one.images, one.distance))


@torch.no_grad()
def distances(
    stp: Any, networks: Sequence[nn.Module], dataloader: DataLoader, num_images: int
) -> NDArray[np.float64]:
    """Distances of networks to the main network, in eval mode, shape (networks, batches)."""
    found = []

    def compare(batches: Iterable[Batch]) -> None:
        for batch in batches:
            main = stp.task.outputs(stp.model, **batch)
            outputs = (stp.task.outputs(network, **batch) for network in networks)
            found.append([float(stp.task.distance(own, main)) for own in outputs])

    with ExitStack() as stack:
        for network in (stp.model, *networks):
            stack.enter_context(eval_mode(network))
        on_batches(stp.model, dataloader, num_images, compare)
    return np.array(found).T
