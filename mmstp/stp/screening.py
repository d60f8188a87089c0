"""A first score for every candidate of the pool, before any of them is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor


@torch.no_grad()
def screen(stp: Any, batches: Iterable[Tensor]) -> None:
    """Scores all candidates by their distance to the main network on the same images (Eq. 8).

    It says something where the main network has been trained: how much of it a candidate keeps.
    Weights and norm statistics stay as they are.

    Args:
        stp: An `STP`; the distances go into its pool, as a first visit each.
        batches: Images of shape (batch, channels, height, width).
    """
    supernet, task = stp.supernet, stp.task
    candidates = list(stp.pool.scores)
    distances = torch.zeros(len(candidates), dtype=torch.float64)
    mode = stp.training
    stp.train()  # norms normalise by the batch, as they will in the search
    for images in batches:
        with supernet.activate(supernet.space.largest):
            teacher = task.outputs(stp.model, images)
        for i, candidate in enumerate(candidates):
            with supernet.activate(candidate):
                distances[i] += float(task.distance(task.outputs(stp.model, images), teacher))
    stp.train(mode)
    all_reduce(distances, 'mean')  # over the ranks
    for candidate, distance in zip(candidates, distances.tolist(), strict=True):
        stp.pool.update(candidate, distance)
