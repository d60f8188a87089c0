"""The main network is trained alone at first: as it would be, and candidates are looked at then."""

import copy
import math

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmstp import PoolHook
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
        'model__survivor': {'teacher': 'main'}, **options,
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


def run(cfg, hook):
    runner = Runner.from_cfg(copy.deepcopy(cfg))
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
    fall = dict(type='CosineAnnealingLR', T_max=END, end=END, by_epoch=False)
    cfg.param_scheduler = [cfg.param_scheduler, fall]
    plain = Weights(BEGIN, finished[1].first)
    run(cfg, plain)
    assert plain.found.keys() == finished[1].found.keys()
    for key, tensor in plain.found.items():
        assert torch.equal(tensor, finished[1].found[key]), key


def test_what_is_logged(finished):
    lines = [line for line in scalars(finished[0].work_dir) if 'loss' in line]
    for name, first, last in (
        ('loss_target', BEGIN, END), ('pool_size', BEGIN, 16), ('loss_teacher', END, 16),
    ):  # fmt: skip
        assert [i for i, line in enumerate(lines) if name in line] == [*range(first, last)]


def test_learning_rate_falls_with_the_search_and_begins_anew(finished, tmp_path):
    usual = train(config(tmp_path, begin=0, end=0))
    found, expected = (
        [line['lr'] for line in scalars(r.work_dir) if 'loss' in line] for r in (finished[0], usual)
    )
    for i in range(END):
        fall = (1 + math.cos(math.pi * i / END)) / 2
        assert found[i] == pytest.approx(fall * expected[i], rel=1e-5)
    assert found[END] == pytest.approx(expected[0])


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
    [(1, {}), (2, {'ema': True}), pytest.param(3, {}, marks=pytest.mark.slow)],
)
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
