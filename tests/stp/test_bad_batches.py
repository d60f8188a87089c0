"""Batches whose loss is not finite: nothing changes, they are counted, and too many end the run."""

import copy
import functools
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.overrides import TorchFunctionMode

from mmstp.errors import CheckpointError
from mmstp.stp.bad_batches import BadBatches
from mmstp.stp.of_runner import stp_of
from tests import tiny
from tests.runs import Scaled, distribute, free_port, one_of_two, same, scalars


def optimizer_of(stp, **options):
    own = torch.optim.SGD(stp.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    found = OptimWrapper(own, **options)
    stp.bad_batches.guard(found, stp)
    return found


def scaled_of(stp, loss_scale):
    found = Scaled(loss_scale, optimizer=torch.optim.SGD(stp.parameters(), lr=0.1))
    stp.bad_batches.guard(found, stp)
    return found


@functools.cache
def built():
    return tiny.stp(model__survivor={})


def ready(alone=False):
    stp = copy.deepcopy(built()).train()
    stp.driver, stp.bad_batches.patience = object(), 3
    if alone:
        stp.pool.shrink(len(stp.pool) - 1)
        stp.go_alone()
    return stp


def state_of(stp, optimizer):
    pool = stp.pool.state_dict()
    return copy.deepcopy(
        {
            'weights and statistics': stp.state_dict(),
            'optimizer': optimizer.state_dict(),
            'scores': [pool['scores'], pool['visits']],
        }
    )


def step(stp, optimizer, spoil=None, seed=0):
    images, samples = tiny.batch(seed=seed)
    if spoil is not None:
        images[3, 0, 2, 2] = spoil
    losses, _ = stp.parse_losses(stp(images, samples, mode='loss'))
    optimizer.update_params(losses)


@pytest.mark.parametrize('alone', [False, True])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_bad_batch_changes_nothing(value, alone):
    """Though the optimizer has momentum and weight decay."""
    stp = ready(alone)
    optimizer = optimizer_of(stp)
    step(stp, optimizer)
    before = state_of(stp, optimizer)
    step(stp, optimizer, value)
    assert same(state_of(stp, optimizer), before)
    assert (stp.bad_batches.total, stp.bad_batches.in_a_row) == (1, 1)
    step(stp, optimizer)
    assert not same(state_of(stp, optimizer), before)
    assert (stp.bad_batches.total, stp.bad_batches.in_a_row) == (1, 0)


@pytest.mark.parametrize('which', ['outputs', 'distance'])
def test_a_pass_alone_may_be_bad(which, monkeypatch):
    """The target's logits, or the distance of one of the two."""
    stp = ready()
    optimizer = optimizer_of(stp)
    step(stp, optimizer)
    before = state_of(stp, optimizer)
    own = getattr(stp.task, which)
    with monkeypatch.context() as patch:
        patch.setattr(stp.task, which, lambda *args: own(*args) * float('nan'))
        step(stp, optimizer)
    assert same(state_of(stp, optimizer), before)


def test_of_accumulated_batches_the_good_ones_count():
    """The step is that of a run that had the good ones alone."""
    bad, good = ready(), ready()
    optimizers = [optimizer_of(stp, accumulative_counts=2) for stp in (bad, good)]
    step(bad, optimizers[0], seed=1)
    step(bad, optimizers[0], float('nan'), seed=2)
    step(good, optimizers[1], seed=1)
    optimizers[1].step()
    for (name, a), b in zip(bad.named_parameters(), good.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_too_many_in_a_row_end_the_run_with_what_is_known():
    stp = ready()
    optimizer = optimizer_of(stp)
    for value in (float('nan'), None, float('nan'), float('nan')):
        step(stp, optimizer, value)
    before = state_of(stp, optimizer)
    message = (
        r'images \[3\] of this batch.*3 times in a row \(PoolHook\.patience\), 4 since the run'
    )
    with pytest.raises(ValueError, match=message):
        step(stp, optimizer, float('nan'))
    assert same(state_of(stp, optimizer), before)


def spoil_gradient(stp):
    """Of one layer, where the loss is finite; a handle to stop it with."""
    weight = stp.model.backbone.layer1[0].conv1.weight
    return weight.register_hook(lambda gradient: gradient * float('nan'))


@pytest.mark.parametrize('options', [{}, {'clip_grad': dict(max_norm=1.0)}])
def test_gradients_that_are_not_finite_make_no_step(options):
    """Clipping would spread them over all layers."""
    stp = ready()
    optimizer = optimizer_of(stp, accumulative_counts=2, **options)

    def trained():
        return copy.deepcopy([list(stp.parameters()), optimizer.state_dict()['state']])

    for seed in range(2):
        step(stp, optimizer, seed=seed)
    before = trained()
    step(stp, optimizer, seed=2)
    handle = spoil_gradient(stp)
    step(stp, optimizer, seed=3)
    assert same(trained(), before)
    counted = stp.bad_batches
    assert (counted.total, counted.in_a_row, counted.steps_in_a_row) == (1, 0, 1)
    handle.remove()
    for seed in range(4, 6):  # without what was summed up then
        step(stp, optimizer, seed=seed)
    assert not same(trained(), before)
    assert all(parameter.isfinite().all() for parameter in stp.parameters())
    assert (counted.total, counted.steps_in_a_row) == (1, 0)


class Reads(TorchFunctionMode):
    """Counts what waits for a device: tensors that become numbers."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        names = ('item', 'tolist', '__bool__', '__float__', '__int__', '__index__')
        self.count += function.__name__ in names
        return function(*args, **kwargs or {})


@pytest.mark.parametrize('alone', [False, True])
@pytest.mark.parametrize('scale', [None, 8.0, dict(init_scale=8.0, growth_interval=1)])
def test_a_step_reads_its_losses_once_and_its_gradients_once(scale, alone):
    """With a scaler it is that which reads the gradients, and nothing else."""
    stp = ready(alone)
    optimizer = optimizer_of(stp) if scale is None else scaled_of(stp, scale)
    images, samples = tiny.batch()
    for _ in range(2):
        with Reads() as forward:
            losses = stp(images, samples, mode='loss')
        optimizer.backward(sum(losses.values()))
        with Reads() as optimizing:
            optimizer.step()
        assert (forward.count, optimizing.count) == (1, 1)
        optimizer.zero_grad()


def test_too_many_such_steps_end_the_run():
    stp = ready()
    optimizer = optimizer_of(stp)
    spoil_gradient(stp)
    for _ in range(2):
        step(stp, optimizer)
    message = r'gradients are not \(those of model\.backbone\.layer1\.0\.conv1\.weight\).* 3 times'
    with pytest.raises(ValueError, match=message):
        step(stp, optimizer)


@pytest.mark.parametrize('fixed, sought', [(False, 2), (True, 0)])
def test_a_scaler_may_look_for_its_scale_and_not_for_ever(fixed, sought):
    """From 8 to 4 to 2 it looks; a scale of 1, or one that stays, is not the fault."""
    stp = ready()
    optimizer = scaled_of(stp, 8.0 if fixed else dict(init_scale=8.0))
    step(stp, optimizer)
    handle = spoil_gradient(stp)
    before = copy.deepcopy(list(stp.parameters()))
    for _ in range(sought + 2):
        step(stp, optimizer)
    assert (stp.bad_batches.total, stp.bad_batches.steps_in_a_row) == (2, 2)
    handle.remove()
    step(stp, optimizer)
    assert not same(list(stp.parameters()), before)
    assert (stp.bad_batches.total, stp.bad_batches.steps_in_a_row) == (2, 0)
    spoil_gradient(stp)
    with pytest.raises(ValueError, match=r'optim_wrapper\.loss_scale.* 3 times in a row'):
        for _ in range(3):
            step(stp, optimizer)


@pytest.mark.parametrize(
    'state', [None, {}, {'total': 1, 'in_a_row': 'x', 'steps_in_a_row': 0, 'good': 0}]
)
def test_a_damaged_state_is_refused(state):
    with pytest.raises(CheckpointError, match='damaged: bad_batches is'):
        BadBatches().load_state_dict(state)


class Spoil(Hook):
    """Puts a NaN into an image of some iterations (counted from 0)."""

    def __init__(self, *iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.iterations:
            data_batch['inputs'] = data_batch['inputs'].float()
            data_batch['inputs'][0, 0, 0, 0] = float('nan')


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler:UserWarning')  # of the first step
def test_they_are_counted_in_the_log_and_in_checkpoints(tmp_path):
    """The first batch too, when nothing has a loss yet; the losses of others are not averaged."""
    runner = Runner.from_cfg(tiny.config(tmp_path, train_cfg__max_epochs=1))
    runner.register_hook(Spoil(0, 2))
    runner.train()
    lines = scalars(tmp_path)
    assert [line['bad_batches'] for line in lines if 'pool_size' in line] == [1, 1, 2, 2]
    assert all(line['loss'] > 0 for line in lines if 'loss' in line)
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['mmstp']['bad_batches']
    assert saved == {'total': 2, 'in_a_row': 0, 'steps_in_a_row': 0, 'good': 0}


class SpoilPass(Spoil):
    """Makes the distance of one subnet NaN there, and no image."""

    def __init__(self, number, *iterations):
        super().__init__(*iterations)
        self.number = number  # 0: the target, 1: the support subnet

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        task = stp_of(runner).task
        vars(task).pop('distance', None)
        if runner.iter in self.iterations:
            own = task.distance
            factors = iter([float('nan') if i == self.number else 1 for i in range(2)])
            task.distance = lambda *outputs: own(*outputs) * next(factors)


class SpoilGradient(Spoil):
    """The gradient of a layer, and no loss."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.iterations:
            self.handle = spoil_gradient(stp_of(runner))

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter in self.iterations:
            self.handle.remove()


PATIENCE = 3


def _rank(rank: int, port: int, out: str, spoil: Hook) -> None:
    with one_of_two(rank, port):
        cfg = tiny.config(Path(out) / 'run', optim_wrapper__accumulative_counts=2)
        cfg.custom_hooks[0].patience = PATIENCE
        distribute(cfg)
        runner = Runner.from_cfg(cfg)
        if rank:
            runner.register_hook(spoil)
        ended = None
        try:
            runner.train()
        except ValueError as error:
            ended = str(error)
        stp = stp_of(runner)
        torch.save([stp.bad_batches.total, stp.state_dict(), ended], f'{out}/{rank}.pth')


def of_two_ranks(spoil, out):
    """What they have counted, their weights and statistics, and the error that ended them."""
    mp.spawn(_rank, args=(free_port(), str(out), spoil), nprocs=2)
    first, second = (torch.load(out / f'{rank}.pth') for rank in range(2))
    assert same(first[1], second[1])
    return (first[0], first[2]), (second[0], second[2])


@pytest.mark.slow
@pytest.mark.parametrize('spoil', [Spoil(1), SpoilPass(0, 1), SpoilPass(1, 1), SpoilGradient(1)])
def test_ranks_decide_alike(spoil, tmp_path):
    """One has NaN in a pass or in a gradient, where gradients would be summed over the ranks."""
    assert of_two_ranks(spoil, tmp_path) == ((1, None), (1, None))


@pytest.mark.slow
def test_too_many_in_a_row_on_one_rank_end_both(tmp_path):
    """The one that has them names the images, the other what it is told; neither waits."""
    (first, error), (second, of_images) = of_two_ranks(Spoil(1, 2, 3), tmp_path)
    assert first == second == 3
    both = f'{PATIENCE} times in a row (PoolHook.patience), 3 since the run began'
    assert both in error and both in of_images
    assert 'images [0] of this batch' in of_images
    assert 'images [' not in error
    assert 'or an image or a label holds numbers that are not finite' in error
