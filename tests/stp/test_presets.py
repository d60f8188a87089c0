"""Presets: what they fill in, what a config's own values do beside them, and pools by visits."""

import dataclasses

import pytest
from mmengine.runner import Runner

from mmstp import PoolHook
from mmstp.stp.of_runner import stp_of
from mmstp.stp.presets import PRESETS
from mmstp.stp.survivor import SurvivorPhase
from tests import tiny
from tests.runs import scalars, train


def config(work_dir, preset='recommended', target=0.4, **hook):
    """A run of 16 iterations, whose hook says what is given alone."""
    cfg = tiny.config(
        work_dir, train_cfg__max_epochs=4, param_scheduler__end=4, param_scheduler__T_max=4,
        model__preset=preset, model__target=target,
    )  # fmt: skip
    cfg.custom_hooks[0] = dict(type='mmstp.PoolHook', interval=1, **hook)
    return cfg


def pool_sizes(runner):
    return [line['pool_size'] for line in scalars(runner.work_dir) if 'pool_size' in line]


@pytest.mark.parametrize('name', [name for name in PRESETS if name != 'pretrained'])
def test_what_a_config_leaves_out_is_the_presets(name):
    stp, preset = tiny.stp(model__preset=name), PRESETS[name]
    assert (stp.target_ce, stp.warmup) == (preset.target_ce, preset.warmup)
    assert stp.survivor == preset.survivor


def test_what_a_config_says_counts():
    stp = tiny.stp(
        model__preset='recommended', model__target_ce=0, model__warmup=0.5,
        model__survivor={'lr': 3.0},
    )  # fmt: skip
    assert (stp.target_ce, stp.warmup) == (0, 0.5)
    assert stp.survivor == SurvivorPhase(lr=3.0)
    assert tiny.stp(model__preset='recommended', model__survivor=False).survivor is None


@pytest.mark.parametrize('name', ['recomended', None, ['paper']])
def test_a_preset_that_does_not_exist_is_named(name):
    with pytest.raises(
        ValueError, match=r'model\.preset=.*: expected one of paper, recommended, long, pretrained'
    ):
        tiny.stp(model__preset=name)


def test_the_search_ends_where_the_preset_says(tmp_path, monkeypatch):
    preset = PRESETS['recommended']
    monkeypatch.setitem(PRESETS, 'recommended', dataclasses.replace(preset, end=0.25, visits=1))
    runner = train(config(tmp_path))
    assert pool_sizes(runner)[:5] == [4, 4, 4, 1, 1]
    assert stp_of(runner).alone


def test_of_several_budgets_each_has_its_share_of_the_search(tmp_path, monkeypatch):
    preset = PRESETS['recommended']
    monkeypatch.setitem(PRESETS, 'recommended', dataclasses.replace(preset, end=0.5, visits=2))
    runner = train(config(tmp_path, target=[0.25, 0.6]))
    for label in ('25', '60'):  # 8 iterations
        sizes = [line[name] for line in scalars(tmp_path) if (name := f'pool_size-{label}') in line]
        assert (sizes[0], sizes[7:]) == (2, [1] * 9)
    assert list(stp_of(runner).survivors) == ['25', '60']


def test_the_pool_is_cut_to_what_can_be_visited(tmp_path):
    whole = train(config(tmp_path, 'paper', end=0.75, visits=4))
    assert pool_sizes(whole)[0] == 3  # 12 iterations
    # those that stay are the first that were drawn
    drawn = list(tiny.stp().pool.scores)[:3]
    assert stp_of(whole).pool.best in drawn


def test_a_search_too_short_for_two_is_warned_of(tmp_path, monkeypatch):
    runner = Runner.from_cfg(config(tmp_path))  # of 16 iterations
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    warnings = []
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    PoolHook().before_train(runner)
    assert 'there is no search: its 1 iterations are too few' in warnings[0]
    assert len(stp_of(runner).pool) == 1


@pytest.mark.parametrize('visits', [0, 1.5, True, 'ten'])
def test_visits_are_a_whole_number(visits):
    with pytest.raises(ValueError, match=r'PoolHook\.visits=.*: expected a whole number'):
        PoolHook(visits=visits)
