"""The backward passes of a step: behind each forward pass, or one for all."""

import copy
import functools
import weakref
from contextlib import contextmanager

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast

from mmstp.stp.passes import Apart, Together, passes_of, scale_of
from tests import tiny
from tests.networks import assert_within
from tests.runs import free_port, one_of_two, same

built = functools.cache(tiny.stp)


def both(**attributes):
    """The same STP twice, whose passes go together and apart."""
    pair = tuple(copy.deepcopy(built()).train() for _ in range(2))
    for stp, passes in zip(pair, (Together, Apart), strict=True):
        stp.driver, stp.passes = object(), passes
        vars(stp).update(attributes)
    return pair


def assert_close(together, apart, tolerance=1e-5):
    for (name, a), b in zip(together.items(), apart.values(), strict=True):
        assert_within(b, a, tolerance, max(float(a.abs().max()), 1e-3)), name


def gradients(stp):
    return {name: parameter.grad for name, parameter in stp.named_parameters()}


@pytest.mark.parametrize('options', [{}, {'target_ce': 2.0, 'beta2': 0.0}])
def test_the_gradient_is_that_of_the_joint_backward_pass(options):
    pair = both(**options)
    images, samples = tiny.batch()
    found = [stp(images, samples, mode='loss') for stp in pair]
    assert same(found[0], found[1])
    for stp, losses in zip(pair, found, strict=True):
        stp.parse_losses(losses)[0].backward()
    assert_close(*map(gradients, pair))
    assert same(*(stp.pool.state_dict() for stp in pair))
    assert same(*(dict(stp.named_buffers()) for stp in pair))


def test_accumulated_and_clipped_steps_are_the_same():
    pair = both()
    for stp in pair:
        own = torch.optim.SGD(stp.parameters(), lr=0.1, momentum=0.9)
        optimizer = OptimWrapper(own, accumulative_counts=2, clip_grad=dict(max_norm=0.5))
        for seed in range(2):
            images, samples = tiny.batch(seed=seed)
            stp.train_step({'inputs': images, 'data_samples': samples}, optimizer)
    before, *after = (dict(stp.named_parameters()) for stp in (built(), *pair))
    changes = [{name: (own[name] - before[name]).detach() for name in before} for own in after]
    assert_close(*changes)
    assert all(gradient is None for gradient in gradients(pair[1]).values())


def test_the_scale_of_losses_reaches_every_pass_and_no_weight():
    plain, scaled = both()
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**12)
    seen = []
    scaled.loss_scale = lambda loss: seen.append(loss) or scaler.scale(loss)
    images, samples = tiny.batch()
    loss, _ = plain.parse_losses(plain(images, samples, mode='loss'))
    loss.backward()
    loss, _ = scaled.parse_losses(scaled(images, samples, mode='loss'))
    scaler.scale(loss).backward()
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    scaler.unscale_(optimizer)
    assert_close(*map(gradients, (plain, scaled)))
    assert sum(loss.requires_grad for loss in seen) == 3


def test_lower_precision_gives_the_same():
    pair = both()
    images, samples = tiny.batch()
    for stp in pair:
        with autocast(device_type='cpu'):
            losses = stp(images, samples, mode='loss')
        stp.parse_losses(losses)[0].backward()
    assert_close(*map(gradients, pair), 2e-2)


def test_a_pass_that_is_not_finite_leaves_no_gradient(monkeypatch):
    _, stp = both()
    stp.bad_batches.patience = 2
    distance = stp.task.distance
    calls = []

    def bad_support(*outputs):
        calls.append(outputs)
        return distance(*outputs) * (float('nan') if len(calls) == 2 else 1)

    monkeypatch.setattr(stp.task, 'distance', bad_support)
    stp.parse_losses(stp(*tiny.batch(), mode='loss'))[0].backward()
    assert stp.bad_batches.total == 1
    assert all(not gradient.any() for gradient in gradients(stp).values())
    assert set(stp.pool.visits.values()) == {0}


def test_without_gradients_the_losses_are_the_same():
    pair = both()
    with torch.no_grad():
        assert same(*(stp(*tiny.batch(), mode='loss') for stp in pair))


class Kept:
    """A tensor that a backward pass will need."""

    def __init__(self, tensor):
        self.tensor = tensor


@contextmanager
def watched(found):
    """Appends the bytes that are kept for backward passes whenever some are added."""
    alive = {'bytes': 0}

    def drop(size):
        alive['bytes'] -= size

    def pack(tensor):
        kept, size = Kept(tensor), tensor.numel() * tensor.element_size()
        weakref.finalize(kept, drop, size)
        alive['bytes'] += size
        found.append(alive['bytes'])
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        yield


def test_one_forward_pass_at_a_time_is_kept():
    """What the main network's keeps is the most, as in ordinary training."""
    images, samples = tiny.batch()
    peaks = []
    together, apart = both()
    for run in (together, apart, together.supernet.export(together.supernet.space.largest)):
        found = []
        with watched(found):
            losses = run.train()(images, samples, mode='loss')
        del losses
        peaks.append(max(found))
    assert peaks[1] < 1.05 * peaks[2] < 0.7 * peaks[0]


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"model\.passes='one': expected one of .*'apart'"):
        tiny.stp(model__passes='one')
    assert passes_of('apart') is Apart
    assert built().passes is Together

    class Own(OptimWrapper):
        def backward(self, loss, **options):
            loss.backward(**options)

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(RuntimeError, match=r"passes='apart' cannot .* of Own"):
        scale_of(Own(optimizer))
    loss = torch.ones(())
    assert scale_of(OptimWrapper(optimizer))(loss) is loss


def _rank(rank, port, out):
    with one_of_two(rank, port):
        found = []
        for stp in both():
            wrapped = MMDistributedDataParallel(stp, broadcast_buffers=False)
            images, samples = tiny.batch(seed=rank)
            stp.parse_losses(wrapped(images, samples, mode='loss'))[0].backward()
            found.append(gradients(stp))
        torch.save(found, f'{out}/{rank}.pth')


@pytest.mark.slow
def test_ranks_average_the_gradients(tmp_path):
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert_close(*first)
    assert same(first, second)
