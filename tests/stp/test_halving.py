"""Which of some subnets keeps most of the main network as it is."""

import copy
import math

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from mmstp import normalized_kl
from mmstp.stp.halving import halve
from mmstp.stp.hooks.statistics import on_images
from tests import tiny
from tests.networks import randomize


@pytest.fixture(scope='module')
def stp():
    """With weights that tell subnets apart."""
    made = tiny.stp(model__pool__size=5)
    randomize(made.model)
    return made


@pytest.fixture(scope='module')
def loaders():
    cfg = tiny.config(train_dataloader__num_workers=0, val_dataloader__batch_size=8)
    fields = ('train_dataloader', 'val_dataloader')
    return [Runner.build_dataloader(cfg[field], seed=0) for field in fields]


@torch.no_grad()
def by_hand(stp, architecture, loaders, images):
    """Distances of the subnet that is active instead of cut out, batch by batch."""
    kept = [[], []]
    for loader, batches in zip(loaders, kept, strict=True):
        on_images(stp.model, loader, images, batches.extend)
    supernet = copy.deepcopy(stp.supernet)
    supernet.calibrate(architecture, kept[0])
    model, found = supernet.model.eval(), []
    for batch in kept[1]:
        main = model(batch)
        with supernet.activate(architecture):
            found.append(normalized_kl(model(batch), main).item())
    return np.array(found)


def test_the_better_half_sees_twice_as_many_images(stp, loaders):
    before = {key: tensor.clone() for key, tensor in stp.state_dict().items()}
    candidates = list(stp.pool.scores)
    found = halve(stp, candidates, *loaders, 8)
    assert [one.images for one in found] == [32, 32, 16, 8, 8]
    assert {one.architecture for one in found} == set(candidates)

    images, left = 8, candidates
    for size in (5, 3, 2):
        assert len(left) == size
        distances = {a: by_hand(stp, a, loaders, images) for a in left}
        best = found[0].architecture
        for one in found:
            if one.images == images:
                own = distances[one.architecture]
                behind = own - distances[best]
                assert one.distance == pytest.approx(own.mean(), rel=1e-5)
                assert one.behind == pytest.approx(behind.mean(), rel=1e-4, abs=1e-5)
                if images == 8:  # a single batch
                    assert math.isnan(one.error)
                else:
                    error = np.sqrt(np.var(behind, ddof=1) / len(behind))
                    assert one.error == pytest.approx(error, rel=1e-3, abs=1e-5)
        left = sorted(left, key=lambda a: distances[a].mean())[: math.ceil(size / 2)]
        images *= 2
    assert best == left[0]
    for key, tensor in stp.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_a_round_with_all_images_decides(stp, loaders):
    found = halve(stp, list(stp.pool.scores), *loaders, 50)
    assert {one.images for one in found} == {32}
    assert [one.distance for one in found] == sorted(one.distance for one in found)


def test_a_distance_that_is_not_finite_is_named(stp, loaders):
    head = stp.model.head.fc
    kept = head.bias.detach().clone()
    try:
        head.bias.data[0] = math.nan
        with pytest.raises(ValueError, match=r'the distance of \(\(.*is nan'):
            halve(stp, list(stp.pool.scores), *loaders, 8)
    finally:
        head.bias.data.copy_(kept)
