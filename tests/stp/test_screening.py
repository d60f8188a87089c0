"""Which candidates a search begins with."""

import copy
from collections import Counter

import pytest
import torch
from mmengine.runner import Runner

from mmstp import ArchitecturePool, PoolHook
from mmstp.stp.hooks import pool as pool_hook
from mmstp.stp.hooks.statistics import on_batches
from mmstp.stp.of_runner import stp_of
from mmstp.stp.screening import SCREENED, begin_search, screen
from tests import tiny
from tests.runs import scalars, train

BATCHES = [torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]


def test_scores_are_the_distances_of_exports_and_nothing_else_changes():
    stp = tiny.stp()
    before = copy.deepcopy(stp.state_dict())
    screen(stp, (dict(inputs=x, data_samples=[]) for x in BATCHES))
    for key, tensor in stp.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    main = copy.deepcopy(stp.model).train()
    for candidate, score in stp.pool.scores.items():
        subnet = stp.supernet.export(candidate).train()
        with torch.no_grad():
            distances = [stp.task.distance(subnet(x), main(x)).item() for x in BATCHES]
        assert score == pytest.approx(sum(distances) / 2, rel=1e-5)
    assert set(stp.pool.visits.values()) == {1}


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
    """Weights of the dense network."""
    path = tmp_path_factory.mktemp('dense') / 'dense.pth'
    torch.save({'state_dict': tiny.stp().model.state_dict()}, path)
    return str(path)


def config(work_dir, **options):
    return tiny.config(work_dir, **{'model__pool__size': 40, 'model__tolerance': 0.2, **options})


def test_the_pool_is_cut_to_the_best_of_those_that_were_screened(dense, tmp_path):
    runner = Runner.from_cfg(config(tmp_path, model__pretrained=dense, train_cfg__max_epochs=25))
    stp = stp_of(runner)
    stp.init_weights()
    drawn, end, batches = list(stp.pool.scores), 6, 2
    screened = round(SCREENED * runner.max_iters)
    assert 2 < screened < len(drawn)
    other = copy.deepcopy(stp)
    begin_search(runner, stp, end, visits=2, batches=batches)
    assert end // 2 == len(stp.pool)

    other.pool.shrink(len(drawn) - screened)
    assert list(other.pool.scores) == drawn[:screened]
    images = batches * runner.train_dataloader.batch_size
    on_batches(other.model, runner.train_dataloader, images, lambda found: screen(other, found))
    best = sorted(other.pool.scores.items(), key=lambda item: item[1])[: end // 2]
    assert dict(stp.pool.scores) == dict(best)


@pytest.mark.parametrize('ranks', [1, 3])
def test_visits_count_the_targets_of_all_ranks(ranks, tmp_path, monkeypatch):
    """With targets of their own the pool may be as many times larger."""
    monkeypatch.setattr(ArchitecturePool, 'draws', ranks)
    runner = Runner.from_cfg(config(tmp_path, model__pool__per_rank=True))
    pools, end, visits = stp_of(runner).pools, 12, 2
    begin_search(runner, stp_of(runner), end, visits, batches=0)
    drawn = Counter(pools.draw()[1] for _ in range(end) for _ in range(pools.draws))
    assert set(drawn.values()) == {visits}
    assert len(drawn) == len(stp_of(runner).pool) == ranks * end // visits


@pytest.mark.parametrize(
    ('preset', 'hook', 'expected'),  # of 8 iterations: end, visits, batches
    [
        ('pretrained', {}, (0, 1, 1)),
        ('pretrained', dict(screen=0, end=0.5), (4, 1, 0)),
        ('recommended', {}, (1, 10, 0)),  # distances to an untrained network mean nothing
        ('recommended', dict(screen=3), (1, 10, 3)),
    ],
)
def test_when_candidates_are_screened(preset, hook, expected, dense, tmp_path, monkeypatch):
    cfg = config(tmp_path, model__preset=preset, model__pretrained=dense)
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    given = []
    monkeypatch.setattr(pool_hook, 'begin_search', lambda *args: given.append(args))
    PoolHook(**hook).before_train(runner)
    ((_, stp, *found),) = given
    assert stp is stp_of(runner)
    assert tuple(found) == expected


TARGETS = [0.4, [0.25, 0.6]]


@pytest.mark.parametrize('target', TARGETS)
def test_without_a_search_the_best_screened_is_trained_alone(target, dense, tmp_path):
    """What it starts from is the trained network's part."""
    own = dict(model__pretrained=dense, model__target=target)
    cfg = config(tmp_path, model__preset='pretrained', **own)
    cfg.custom_hooks[0] = dict(type='mmstp.PoolHook')
    cfg.train_cfg.max_epochs = 1
    cfg.optim_wrapper.optimizer.lr = 0.0
    runner = train(cfg)
    stp = stp_of(runner)
    assert stp.alone
    assert {'loss_target', 'loss_support'}.isdisjoint(set().union(*scalars(tmp_path)))
    main = tiny.stp(**own)
    main.init_weights()
    for label, pool in stp.pools.items():
        expected = main.supernet.export(pool.best).state_dict()
        for key, parameter in stp.survivors[label].named_parameters():
            assert torch.equal(parameter, expected[key]), key


WARM = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
    dict(type='CosineAnnealingLR', T_max=5, by_epoch=False, begin=3, end=8),
]
CYCLE = dict(type='OneCycleLR', eta_max=0.1, total_steps=8, by_epoch=False)
PLATEAU = dict(type='ReduceOnPlateauLR', monitor='accuracy/top1', rule='greater', patience=99)


@pytest.mark.parametrize(
    ('target', 'schedule'), [*((target, WARM) for target in TARGETS), (0.4, PLATEAU),
                             pytest.param(0.4, CYCLE, marks=pytest.mark.slow)]
)  # fmt: skip
def test_without_a_search_the_schedule_is_the_config_s_and_resumed_too(
    target, schedule, dense, tmp_path, monkeypatch
):
    """With groups of parameters that the survivor has none of."""
    lr = 0.5

    def made(name, **options):
        options |= dict(model__pretrained=dense, model__target=target)
        cfg = config(tmp_path / name, train_cfg__max_epochs=2, **options)
        cfg.custom_hooks[0] = dict(type='mmstp.PoolHook')
        cfg.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)  # a group for each parameter
        cfg.param_scheduler = copy.deepcopy(schedule)
        return cfg

    own = dict(model__preset='pretrained', model__survivor={'lr': lr})
    whole = train(made('whole', **own))
    plain = train(made('plain', model__preset='paper', model__pool__size=1))
    expected = [lr * line['lr'] for line in scalars(plain.work_dir) if 'loss' in line]
    assert [line['lr'] for line in scalars(whole.work_dir) if 'loss' in line] == pytest.approx(
        expected
    )
    monkeypatch.setattr('mmstp.stp.screening.screen', None)  # not again
    cfg = made('resumed', **own)
    cfg.resume, cfg.load_from = True, f'{whole.work_dir}/epoch_1.pth'
    resumed = train(cfg)
    first, second = (
        torch.load(f'{run.work_dir}/epoch_2.pth', weights_only=False) for run in (whole, resumed)
    )
    for key, tensor in first['state_dict'].items():
        assert torch.equal(tensor, second['state_dict'][key]), key
    assert str(first['param_schedulers']) == str(second['param_schedulers'])


def test_the_preset_of_trained_networks_needs_one():
    with pytest.raises(ValueError, match=r"model\.preset='pretrained' .*: expected model\.pretr"):
        tiny.stp(model__preset='pretrained')


@pytest.mark.parametrize('screen', [-1, 1.5, True, 'two'])
def test_screen_is_a_whole_number(screen):
    with pytest.raises(
        ValueError, match=r'PoolHook\.screen=.*: expected a whole number, at least 0'
    ):
        PoolHook(screen=screen)
