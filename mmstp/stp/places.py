"""Batches from any place of an epoch on, with random numbers that depend on the place alone.

What a worker, a step or an interruption did before does not matter then::

    epoch 3, rank 1 of 2:   batch 0            batch 1
    places                  1  3  5  7         9  11  13  15
    seeds                   of (run, epoch 3, place 9), …

A run that goes on with batch 1 leaves the indices of batch 0 out, whose images are not loaded.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import broadcast, get_dist_info
from torch.utils.data import DataLoader, IterableDataset

from ..foreign import set_batch_sampler


def seed_of(*place: int | str) -> int:
    """A seed for a place in a run, in [0, 2^32)."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=4).digest(), 'little')


def shared_seed() -> int:
    """A seed that follows the run's, the same on all ranks."""
    seed = torch.randint(2**31, ())
    broadcast(seed)
    return int(seed)


def seed_host(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch's generator of the CPU.

    `torch.manual_seed` sees to other devices too, which takes a hundred times as long.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


class Placed(NamedTuple):
    """What a sampler gives for a sample, and the seed of the place where it stands."""

    index: Any
    seed: int


class PlacedBatches:
    """A batch sampler that gives what another does, from a batch on, as `Placed`.

    A place counts the samples of all ranks in turn, as samplers deal them out. So a joint batch of
    as many samples has the same ones, with the same seeds, on any number of ranks.

    Args:
        batches: The other.
        seed: The same on all ranks.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def begin(self, epoch: int, start: int) -> None:
        """The next pass is this epoch's, from batch ``start`` on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Of a whole epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Placed]]:
        place, ranks = get_dist_info()
        for number, batch in enumerate(self.batches):
            places = range(place, place + ranks * len(batch), ranks)
            place += ranks * len(batch)
            if number >= self.start:
                seeds = (seed_of(self.seed, self.epoch, other) for other in places)
                yield [Placed(*both) for both in zip(batch, seeds, strict=True)]

    def __getattr__(self, name: str) -> Any:
        """The other's ``sampler``, ``batch_size`` and the like."""
        return getattr(vars(self)['batches'], name)


class _Seeding:
    """Fetches samples of a dataset: `Placed` ones with their seed, others as ever."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        samples = []
        for item in items:
            if isinstance(item, Placed):
                seed_host(item.seed)
                item = item.index
            samples.append(self.dataset[item])
        return samples


def place_batches(loader: DataLoader, seed: int) -> PlacedBatches | None:
    """Makes a dataloader give `PlacedBatches`, in place.

    Its workers need no seed of their own, and may persist.

    Returns:
        None where it has no batches of indices (``batch_size=None``, iterable data sets).
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return None
    batches: Any = loader.batch_sampler
    if isinstance(batches, PlacedBatches):  # of a training before
        batches = batches.batches
    dataset: Any = loader.dataset
    dataset.__getitems__ = _Seeding(dataset)  # what PyTorch asks for a batch of samples
    placed = PlacedBatches(batches, seed)
    set_batch_sampler(loader, placed)
    return placed
