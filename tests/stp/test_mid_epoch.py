"""Checkpoints inside an epoch: from each of them a run goes on as if nothing had happened."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.runner import Runner

from mmstp.errors import CheckpointError
from mmstp.stp.hooks.pool import GRADIENTS
from mmstp.stp.of_runner import stp_of
from tests import tiny
from tests.runs import Scaled, StopAfter, distribute, free_port, one_of_two, same, train

# PyTorch's, of schedules that are stepped in every iteration
pytestmark = pytest.mark.filterwarnings('ignore:Detected call of `scheduler:UserWarning')

END = 6  # of the search, of 12 iterations; an epoch has 4
OPTIONS = {
    'train_cfg__max_epochs': 3,
    'param_scheduler__end': 3,
    'param_scheduler__T_max': 3,
    'model__survivor': {},
    'model__warmup': 0.5,
    'train_dataloader__num_workers': 2,
    'optim_wrapper__accumulative_counts': 2,
    'randomness__seed': None,  # each start draws another: what counts is the first run's
}


def config(work_dir, **options):
    cfg = tiny.config(work_dir, **{**OPTIONS, **options})
    cfg.custom_hooks[0].end = END / 12
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    return cfg


# half precision, whose scale begins at 8 and grows with every second step
SCALED = {
    'optim_wrapper__type': Scaled.__name__,
    'optim_wrapper__loss_scale': dict(init_scale=8.0, growth_interval=2),
}


@pytest.fixture(scope='module')
def options():
    """Of the config, besides `OPTIONS`."""
    return {}


@pytest.fixture(scope='module')
def whole(options, tmp_path_factory):
    """A run with a checkpoint behind every iteration."""
    work_dir = tmp_path_factory.mktemp('whole')
    train(config(work_dir, **options))
    return work_dir


def resumed(whole, work_dir, at, until, **options):
    """A run that goes on from one of them, and ends behind another iteration."""
    work_dir.mkdir(exist_ok=True)
    shutil.copy(whole / f'iter_{at}.pth', work_dir)
    cfg = config(work_dir, **options)
    cfg.resume, cfg.load_from = True, str(work_dir / f'iter_{at}.pth')
    runner = Runner.from_cfg(cfg)
    runner.register_hook(StopAfter(until))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    return runner


def content(work_dir, iteration):
    found = torch.load(Path(work_dir) / f'iter_{iteration}.pth', weights_only=False)
    times = ('meta', 'message_hub')
    return {key: value for key, value in found.items() if key not in times}


@pytest.mark.parametrize(
    'options',
    [{}, SCALED, pytest.param({**SCALED, 'model__passes': 'apart'}, marks=pytest.mark.slow)],
    scope='module',
)
# where the survivor follows the search; in the search, gradients half summed up; in its own phase
@pytest.mark.parametrize(
    ('at', 'until'),
    [(5, 7), *(pytest.param(*both, marks=pytest.mark.slow) for both in [(1, 3), (7, 9)])],
)
def test_the_next_checkpoints_are_those_of_the_whole_run(at, until, options, whole, tmp_path):
    resumed(whole, tmp_path, at, until, **options)
    for iteration in range(at + 1, until + 1):
        expected, found = (content(folder, iteration) for folder in (whole, tmp_path))
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert same(value, found[key]), (iteration, key)


def test_gradients_are_saved_until_the_step(whole):
    assert [bool(content(whole, i)[GRADIENTS]) for i in (1, 2, 3, 4)] == [True, False] * 2


@pytest.mark.parametrize('options', [SCALED], scope='module')
def test_gradients_that_are_saved_are_of_the_scale_beside_them(whole):
    """It is another behind the second step and the fourth, so that each has to be restored."""
    scales = [content(whole, i)['optimizer']['loss_scaler']['scale'] for i in (1, 3, 5, 7, 9)]
    assert scales == [8, 8, 16, 16, 32]


def test_without_the_hook_that_goes_on_the_run_is_refused(whole, tmp_path):
    cfg = config(tmp_path)
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if 'EpochSeedHook' not in hook['type']]
    cfg.resume, cfg.load_from = True, str(whole / 'iter_3.pth')
    with pytest.raises(CheckpointError, match=r'middle of epoch 1 \(iteration 3\).*EpochSeedHook'):
        train(cfg)


@pytest.mark.parametrize('at', [3, 4])
def test_epochs_of_another_length_are_refused(at, whole, tmp_path):
    """At the end of one too: the search would be over at another place."""
    cfg = config(tmp_path, train_dataloader__batch_size=8)
    cfg.resume, cfg.load_from = True, str(whole / f'iter_{at}.pth')
    with pytest.raises(CheckpointError, match=r'epochs had 4 batches; here an epoch has 8'):
        train(cfg)


@pytest.mark.slow
@pytest.mark.parametrize('teacher', [None, 'main'])
@pytest.mark.parametrize('at', range(1, 12))
def test_killed_anywhere_it_ends_with_the_same(at, teacher, tmp_path):
    def made(name):
        return config(tmp_path / name, randomness__seed=3, model__survivor={'teacher': teacher})

    expected = train(made('whole'))
    cfg = made('killed')
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.register_hook(StopAfter(at))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    cfg.resume = True
    found = train(cfg)
    assert stp_of(found).pool.state_dict() == stp_of(expected).pool.state_dict()
    first, second = (content(runner.work_dir, 12) for runner in (expected, found))
    assert same(first, second)


def _rank(rank: int, port: int, out: str, at: int, per_rank: bool) -> None:
    with one_of_two(rank, port):
        cfg = config(
            Path(out) / 'run', randomness__seed=3, train_dataloader__batch_size=8,
            model__pool__per_rank=per_rank,
        )  # fmt: skip
        distribute(cfg)
        if at:
            cfg.resume, cfg.load_from = True, f'{out}/run/iter_{at}.pth'
        runner = Runner.from_cfg(cfg)
        runner.register_hook(StopAfter(5))
        with pytest.raises(KeyboardInterrupt):
            runner.train()
        stp = stp_of(runner)
        torch.save([stp.state_dict(), stp.pool.state_dict()], f'{out}/{at}_{rank}.pth')


@pytest.mark.slow
# with gradients half summed up, and behind a step
@pytest.mark.parametrize(('at', 'per_rank'), [(1, False), (2, False), (3, True)])
def test_two_ranks_go_on_as_they_would_have(at, per_rank, tmp_path):
    """Their running statistics and gradients, which only one writes, included."""
    for start in (0, at):
        mp.spawn(_rank, args=(free_port(), str(tmp_path), start, per_rank), nprocs=2)
    for rank in (0, 1):
        (expected, pool), (found, other) = (
            torch.load(tmp_path / f'{start}_{rank}.pth') for start in (0, at)
        )
        for key, value in expected.items():
            assert torch.equal(value, found[key]), (rank, key)
        assert same(pool, other)
