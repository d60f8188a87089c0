"""Batches whose loss is not finite: nothing changes, they are counted, and too many end the run."""

import copy
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmstp.errors import CheckpointError
from mmstp.stp.bad_batches import BadBatches
from mmstp.stp.of_runner import stp_of
from tests import tiny
from tests.runs import free_port, one_of_two, same, scalars


def optimizer_of(stp, **options):
    own = torch.optim.SGD(stp.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    found = OptimWrapper(own, **options)
    stp.bad_batches.guard(found)
    return found


def ready(alone=False):
    stp = tiny.stp(model__survivor={}).train()
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
    message = r'images \[3\] of this batch.*3 batches in a row.*PoolHook\.patience.*4 since the run'
    with pytest.raises(ValueError, match=message):
        step(stp, optimizer, float('nan'))
    assert same(state_of(stp, optimizer), before)


@pytest.mark.parametrize('state', [None, {}, {'total': 1, 'in_a_row': 'x', 'good': 0}])
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
    assert saved == {'total': 2, 'in_a_row': 0, 'good': 0}


def _rank(rank: int, port: int, out: str) -> None:
    with one_of_two(rank, port):
        cfg = tiny.config(Path(out) / 'run', optim_wrapper__accumulative_counts=2)
        cfg.launcher = 'pytorch'
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None,
            find_unused_parameters=False,
        )  # fmt: skip
        runner = Runner.from_cfg(cfg)
        if rank:
            runner.register_hook(Spoil(1))  # where gradients would be summed over the ranks
        runner.train()
        stp = stp_of(runner)
        torch.save([stp.bad_batches.total, stp.state_dict()], f'{out}/{rank}.pth')


@pytest.mark.slow
def test_ranks_decide_alike(tmp_path):
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert first[0] == second[0] == 1
    assert same(first[1], second[1])
