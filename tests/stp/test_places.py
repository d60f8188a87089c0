"""Batches from any place on: the same samples and random numbers, whoever fetches them."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset

from mmstp.stp import places
from mmstp.stp.places import PlacedBatches, place_batches


class Noisy(Dataset):
    """Samples with random numbers of all three kinds."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        own = [random.random(), np.random.random(), torch.rand(()).item()]
        return torch.tensor([index, *own], dtype=torch.float64)


def loader(workers=0, **options):
    return DataLoader(
        Noisy(),
        sampler=DefaultSampler(Noisy(), seed=3),
        batch_size=4,
        num_workers=workers,
        **options,
    )


def epoch(made, start=0, number=1):
    batches = made.batch_sampler
    if not isinstance(batches, PlacedBatches):
        batches = place_batches(made, seed=5)
    batches.sampler.set_epoch(number)
    batches.begin(number, start)
    return list(made)


def equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize('options', [{}, {'workers': 2}, dict(workers=1, persistent_workers=True)])
def test_an_epoch_from_its_middle_is_the_rest_of_the_whole(options):
    whole = epoch(loader())
    assert len(whole) == 6
    made = loader(**options)
    assert equal(epoch(made, start=2), whole[2:])
    assert len(made) == 6
    assert epoch(made, start=6) == []
    other = epoch(made, number=2)  # by the same workers, if they persist
    assert equal(other, epoch(loader(), number=2))
    assert not equal(other, whole)


def test_no_two_samples_share_their_numbers():
    rows = torch.cat(epoch(loader()) + epoch(loader(), number=2))
    assert len(rows[:, 1:].unique(dim=0)) == len(rows)


@pytest.mark.parametrize('ranks', [2, 4])
def test_as_many_images_on_other_ranks_are_the_same(ranks, monkeypatch):
    """Of every joint batch, with the same seeds."""

    def joint(ranks):
        per_rank = []
        for rank in range(ranks):
            monkeypatch.setattr(places, 'get_dist_info', lambda rank=rank: (rank, ranks))
            indices = range(rank, 24, ranks)
            batches = PlacedBatches(BatchSampler(indices, 8 // ranks, drop_last=False), seed=5)
            batches.begin(3, 1)
            per_rank.append(list(batches))
        return [sorted(chain.from_iterable(batch)) for batch in zip(*per_rank, strict=True)]

    assert joint(ranks) == joint(1)
    assert len(joint(1)) == 2


def test_what_else_asks_the_data_set_is_left_alone():
    made = loader()
    place_batches(made, seed=5)
    torch.manual_seed(0)
    first = list(DataLoader(Subset(made.dataset, [3, 4]), batch_size=2))
    second = list(DataLoader(Subset(made.dataset, [3, 4]), batch_size=2))
    assert not equal(first, second)  # nobody seeded them
    assert first[0][:, 0].tolist() == [3, 4]


def test_what_has_no_batches_of_indices_is_not_placed():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    assert place_batches(DataLoader(Stream()), seed=5) is None
    assert place_batches(DataLoader(Noisy(), batch_size=None), seed=5) is None
