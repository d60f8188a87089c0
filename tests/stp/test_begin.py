"""The main network is trained alone at first: as it would be, and candidates are looked at then."""

import copy
import math

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmstp import PoolHook
from mmstp.cli.launch import load_search
from mmstp.errors import CheckpointError
from mmstp.stp.of_runner import stp_of
from tests import tiny
from tests.runs import (
    assert_resumed_is_whole,
    distribute,
    free_port,
    one_of_two,
    scalars,
    train,
)

# 16 iterations, four in an epoch
BEGIN, END = 5, 9


def config(work_dir, begin=BEGIN, end=END, **options):
    cfg = tiny.config(work_dir, **{
        'train_cfg__max_epochs': 4, 'param_scheduler__end': 4, 'param_scheduler__T_max': 4,
        'model__survivor': {'teacher': 'main'}, 'default_hooks__checkpoint__max_keep_ckpts': 4,
        **options,
    })  # fmt: skip
    cfg.custom_hooks[0].update(begin=begin / 16, end=end / 16)
    return cfg


class Weights(Hook):
    """What a network begins with, if it is given, and what it is after so many iterations."""

    priority = 'LOWEST'

    def __init__(self, after, first=None):
        self.after, self.first, self.found = after, first, None

    def before_train(self, runner):
        network = getattr(runner.model, 'model', runner.model)
        if self.first is None:
            self.first = copy.deepcopy(network.state_dict())
        network.load_state_dict(self.first)

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.after:
            network = getattr(runner.model, 'model', runner.model)
            self.found = copy.deepcopy(network.state_dict())


class Fall(Hook):
    """Half a cosine down to 0, on top of a schedule of epochs."""

    def __init__(self, iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, *args, **kwargs):
        (group,) = runner.optim_wrapper.param_groups
        self.rate = group['lr']
        group['lr'] *= (1 + math.cos(math.pi * runner.iter / self.iterations)) / 2

    def after_train_iter(self, runner, *args, **kwargs):
        runner.optim_wrapper.param_groups[0]['lr'] = self.rate


def run(cfg, *hooks):
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    weights = Weights(BEGIN)
    return run(config(tmp_path_factory.mktemp('run')), weights), weights


def test_until_then_it_is_the_training_of_the_dense_network(finished, tmp_path):
    cfg = config(tmp_path)
    cfg.model = cfg.model.model
    cfg.custom_hooks = [dict(type='mmstp.EpochSeedHook')]
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.pop('save_best')  # it is the subnet's
    plain = Weights(BEGIN, finished[1].first)
    run(cfg, plain, Fall(END))
    assert plain.found.keys() == finished[1].found.keys()
    for key, tensor in plain.found.items():
        assert torch.equal(tensor, finished[1].found[key]), key


def test_what_is_logged(finished):
    lines = [line for line in scalars(finished[0].work_dir) if 'loss' in line]
    for name, first, last in (
        ('loss_target', BEGIN, END), ('pool_size', BEGIN, 16), ('loss_teacher', END, 16),
    ):  # fmt: skip
        assert [i for i, line in enumerate(lines) if name in line] == [*range(first, last)]


@pytest.mark.parametrize(
    ('schedule', 'first'),
    [
        pytest.param(
            dict(type='CosineAnnealingLR', T_max=16, eta_min=0.01, by_epoch=False), 0.05,
            marks=pytest.mark.slow,
        ),
        (dict(type='OneCycleLR', eta_max=0.1, total_steps=16, by_epoch=False), 0.1 / 25),
        ([dict(type='LinearLR', start_factor=0.1, end=1), dict(type='StepLR', step_size=2)], 0.05),
    ],
)  # fmt: skip
def test_learning_rate_falls_with_the_search_and_begins_anew(schedule, first, tmp_path):
    for name, options in (('run', {}), ('usual', dict(begin=0, end=0))):
        cfg = config(tmp_path / name, **options)
        cfg.param_scheduler = copy.deepcopy(schedule)
        train(cfg)
    found, expected = (
        [line['lr'] for line in scalars(tmp_path / name) if 'loss' in line]
        for name in ('run', 'usual')
    )
    for i in range(END):
        fall = (1 + math.cos(math.pi * i / END)) / 2
        assert found[i] == pytest.approx(fall * expected[i], rel=1e-5)
    assert found[END] == pytest.approx(first)


def test_without_a_search_the_trained_network_teaches_the_best_of_those_screened(tmp_path):
    weights = Weights(BEGIN)
    cfg = config(tmp_path, end=BEGIN)
    cfg.custom_hooks[0].update(visits=1, screen=1)
    stp = stp_of(run(cfg, weights))
    dense = tiny.stp()
    dense.model.load_state_dict(weights.found)
    images, _ = tiny.batch()
    with torch.no_grad():
        a, b = (network(images, mode='tensor')[-1] for network in (dense.model.eval(), stp.teacher))
    torch.testing.assert_close(a, b)
    dense.supernet.order_channels()
    for key, tensor in dense.model.state_dict().items():
        assert torch.equal(tensor, stp.teacher.state_dict()[key]), key
    assert stp.pool.scores[stp.pool.best] is not None


@pytest.mark.parametrize(
    ('epoch', 'options'),  # of the main network, the search, the survivor
    [(2, {'ema': True}),
     *(pytest.param(epoch, {}, marks=pytest.mark.slow) for epoch in [1, 3])],
)  # fmt: skip
def test_resumed_run_equals_an_uninterrupted_one(epoch, options, tmp_path, finished):
    assert_resumed_is_whole(config, tmp_path, epoch, options, finished[0])


def test_of_several_budgets_all_are_looked_at_then(tmp_path):
    stp = stp_of(train(config(tmp_path, model__target=[0.25, 0.6])))
    assert list(stp.survivors) == ['25', '60']
    lines = [line for line in scalars(tmp_path) if 'loss' in line]
    for label in stp.survivors:
        names = (f'pool_size-{label}', f'loss_teacher-{label}')
        first = [next(i for i, line in enumerate(lines) if name in line) for name in names]
        assert first == [BEGIN, END]


def _rank(rank, port, out):
    with one_of_two(rank, port):
        cfg = config(f'{out}/run')
        distribute(cfg)
        stp = stp_of(train(cfg))
        tensors = [p.detach() for network in (stp, stp.teacher) for p in network.parameters()]
        torch.save([str(stp.pool.best), tensors], f'{out}/{rank}.pth')


@pytest.mark.slow
def test_two_ranks_agree(tmp_path):
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    (best, own), (other, others) = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert best == other
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


def test_tools_read_a_main_network_that_was_alone_as_the_run_would(finished):
    checkpoint = f'{finished[0].work_dir}/epoch_1.pth'
    read, expected = tiny.stp(), tiny.stp()
    load_search(read, checkpoint)
    expected.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'])
    expected.supernet.order_channels()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[key]), key


@pytest.mark.parametrize('how', ['resume', 'load_from'])
def test_search_that_has_begun_before_its_begin_is_refused(how, finished, tmp_path):
    cfg = config(tmp_path, begin=12, end=14)
    cfg.load_from, cfg.resume = f'{finished[0].work_dir}/epoch_2.pth', how == 'resume'
    at = 8 if how == 'resume' else 0
    with pytest.raises(CheckpointError, match=rf'goes on at iteration {at}, before.*iteration 12'):
        train(cfg)


def test_search_without_a_step_to_begin_with_is_told(tmp_path):
    cfg = config(tmp_path, begin=15, end=15, optim_wrapper__accumulative_counts=7)
    cfg.param_scheduler = None
    cfg.log_level = 'WARNING'
    runner = train(cfg)
    assert not stp_of(runner).searching
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'no candidate was looked at' in log and 'accumulative_counts' in log


@pytest.mark.parametrize('survivor', [False, {}])
def test_one_that_is_drawn_without_a_look_is_told(survivor, tmp_path):
    cfg = config(tmp_path, begin=8, end=8, model__survivor=survivor)
    cfg.log_level = 'WARNING'
    pool = stp_of(train(cfg)).pool
    assert len(pool) == 1
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'there is no search: it ends where it begins, and PoolHook.screen is 0' in log


def test_training_without_an_iteration_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'^train_cfg: the training has 0 iterations; expected'):
        train(config(tmp_path, train_cfg__max_epochs=0))


def test_main_network_without_an_iteration_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'PoolHook\.begin=0\.01: of 16 iterations that is none'):
        train(config(tmp_path, begin=0.16, end=8))


def test_search_shorter_than_its_budgets_is_told_as_that(tmp_path):
    cfg = config(tmp_path, begin=8, end=9, model__target=[0.25, 0.6])
    cfg.log_level = 'WARNING'
    assert [len(pool) for pool in stp_of(train(cfg)).pools.values()] == [1, 1]
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('its 0 iterations are too few to visit two architectures 1 times') == 2


def test_search_that_begins_after_its_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'PoolHook\.begin=0\.5625: the search begins after its'):
        train(config(tmp_path, begin=9, end=8))


def test_main_network_that_is_alone_to_the_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match='alone for all 16 iterations, and no candidate'):
        train(config(tmp_path, begin=16, end=16, model__survivor=False))


@pytest.mark.parametrize('begin', [-0.1, 1.5, 'half', True])
def test_a_part_is_a_fraction(begin):
    with pytest.raises(ValueError, match=r'PoolHook\.begin=.*: expected a fraction in \[0, 1\]'):
        PoolHook(begin=begin)
