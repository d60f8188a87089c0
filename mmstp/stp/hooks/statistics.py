"""What is estimated on images of a run beside its training, such as statistics of subnets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ...analysis.eval_state import eval_mode
from ...analysis.scratch import random_state_kept
from ...subnets.norm_statistics import calibrate, norms_with_statistics


def calibrate_on(network: Any, dataloader: DataLoader, num_images: int) -> None:
    """Gives a compact network norm statistics of its own, by `on_images`."""
    on_images(network, dataloader, num_images, partial(_calibrate, network))


def on_images(
    network: Any,
    dataloader: DataLoader,
    num_images: int,
    function: Callable[[Iterable[Tensor]], Any],
) -> None:
    """As `on_batches`, with the images alone."""

    def of_images(batches: Iterable[Mapping[str, Any]]) -> None:
        function(batch['inputs'] for batch in batches)

    on_batches(network, dataloader, num_images, of_images)


def on_batches(
    network: Any,
    dataloader: DataLoader,
    num_images: int,
    function: Callable[[Iterable[Mapping[str, Any]]], Any],
) -> int:
    """Calls a function with batches of a dataloader's dataset, as a network takes them.

    Each has ``inputs``, images of shape (batch, channels, height, width), and ``data_samples``.
    The same images with the same augmentation are drawn every time and on every rank, and the
    random state is left as it was.

    Returns:
        How many images they hold: fewer than asked for, where there are fewer.
    """
    dataset: Any = dataloader.dataset
    chosen = np.random.default_rng(0).permutation(len(dataset))[:num_images].tolist()
    size = min(batch_size_of(dataloader), len(chosen))
    batches = DataLoader(
        Subset(dataset, chosen),
        batch_size=size,
        num_workers=dataloader.num_workers,
        collate_fn=dataloader.collate_fn,
        drop_last=True,  # every batch weighs the same in a cumulative average
    )
    with random_state_kept(seed=0):
        function(network.data_preprocessor(batch, False) for batch in batches)
    return size * len(batches)


def _calibrate(network: Any, batches: Iterable[Tensor]) -> None:
    """Statistics of all norms but those that are frozen (``frozen_stages``).

    A subnet was trained on the main network's there, which it sees the same input as.
    """
    with eval_mode(network):
        network.train()
        frozen = [norm for _, norm in norms_with_statistics(network) if not norm.training]
    try:
        for norm in frozen:
            norm.track_running_stats = False  # it still normalises by them in eval mode
        calibrate(network, batches, partial(network, mode='tensor'))
    finally:
        for norm in frozen:
            norm.track_running_stats = True


def batch_size_of(dataloader: DataLoader) -> int:
    """Images in a batch."""
    sampler: Any = dataloader.batch_sampler  # MMDetection's, by aspect ratio, hides it from torch
    return int(dataloader.batch_size or sampler.batch_size)
