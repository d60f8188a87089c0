"""Whole runs: shrinking, checkpoints, resuming, logging, evaluation."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from mmstp import Architecture, PoolHook, SubnetEvalHook
from mmstp.errors import CheckpointError
from mmstp.stp.hooks.pool import BEST, STATE
from mmstp.stp.hooks.statistics import calibrate_on
from mmstp.stp.of_runner import stp_of
from tests import tiny
from tests.runs import StopBefore, scalars, train


def subnet_metric(runner) -> float:
    return runner.message_hub.get_scalar('val/subnet/accuracy/top1').current()


def calibrated_accuracy(stp, runner):
    """The subnet's, cut out and evaluated by hand."""
    network = stp.export()
    calibrate_on(network, runner.train_dataloader, 32)
    network.eval()
    right = [
        sample.pred_label.item() == sample.gt_label.item()
        for batch in runner.val_dataloader
        for sample in network.val_step(batch)
    ]
    return pytest.approx(100 * np.mean(right))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run of 2 epochs of 4 iterations, its pool shrunk from 5 to 1 within 6 of the 8."""
    target = dict(_delete_=True, macs=0.4, params=1.0)
    return train(tiny.config(tmp_path_factory.mktemp('run'), model__target=target))


def test_pool_ends_with_one_that_was_trained(finished):
    pool = stp_of(finished).pool
    assert len(pool) == 1
    assert pool.visits[pool.best] >= 2
    # floor(2 * (5 - 1) / 6) = 1 after iterations 2 and 4, the rest after 6
    lines = [line for line in scalars(finished.work_dir) if 'pool_size' in line]
    assert [line['pool_size'] for line in lines] == [5, 4, 4, 3, 3, 1, 1, 1]


def test_what_is_logged(finished):
    lines = scalars(finished.work_dir)
    train_line = next(line for line in lines if 'loss' in line)
    assert {'loss_ce', 'loss_target', 'loss_support', 'pool_size', 'best_score', 'pool_spread'} <= (
        set(train_line)
    )
    val_line = next(line for line in lines if 'accuracy/top1' in line)
    assert {'accuracy/top1', 'subnet/accuracy/top1'} <= set(val_line)
    best = next(line for line in lines if 'best/macs_ratio' in line)
    assert best['best/macs_ratio'] == pytest.approx(0.4, rel=0.1)
    assert 0 < best['best/params_ratio'] < 1
    assert [line['pool_spread'] for line in lines if 'pool_spread' in line][-1] == 0


def test_best_architecture_is_written_at_every_checkpoint(finished):
    content = json.loads((Path(finished.work_dir) / f'{BEST}.json').read_text())
    assert Architecture.parse(content['architecture']) == stp_of(finished).pool.best
    assert content['macs_ratio'] == pytest.approx(0.4, rel=0.1)
    saved = torch.load(Path(finished.work_dir) / 'epoch_1.pth', weights_only=False)
    assert len(saved[STATE]['pool']['architectures']) == 3


def test_subnet_metric_is_that_of_the_calibrated_export(finished):
    stp = stp_of(finished)
    assert subnet_metric(finished) == calibrated_accuracy(stp, finished)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path, finished):
    first = tiny.config(tmp_path / 'resumed')
    # killed after its first epoch: the schedule is that of the whole run
    runner = Runner.from_cfg(copy.deepcopy(first))
    runner.register_hook(StopBefore(1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    first.resume = True
    resumed = train(first)
    expected, found = stp_of(finished), stp_of(resumed)
    assert found.pool.state_dict() == expected.pool.state_dict()
    for (name, a), b in zip(
        expected.state_dict().items(), found.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_scores_in_a_checkpoint_are_restored_bit_by_bit(finished):
    saved = torch.load(Path(finished.work_dir) / 'epoch_1.pth', weights_only=False)
    stp = tiny.stp()
    stp.pool.load_state_dict(saved[STATE]['pool'])
    assert stp.pool.state_dict() == saved[STATE]['pool']


def test_checkpoint_of_another_width_stops_the_run(tmp_path, finished):
    cfg = tiny.config(
        tmp_path,
        model__model__backbone__base_channels=32,
        model__model__backbone__stem_channels=32,
        model__model__head__in_channels=256,
        model__tolerance=0.9,  # else its pool would be refused before
        load_from=str(Path(finished.work_dir) / 'epoch_2.pth'),
    )
    with pytest.raises(CheckpointError, match=r'model\.backbone\.conv1\.weight: \(16.*\(32'):
        train(cfg)


def test_checkpoint_of_a_plain_classifier_stops_the_run(tmp_path):
    torch.save({'state_dict': tiny.stp().model.state_dict()}, tmp_path / 'dense.pth')
    cfg = tiny.config(tmp_path / 'run', load_from=str(tmp_path / 'dense.pth'))
    with pytest.raises(CheckpointError, match=r'no state of an STP search.*model\.pretrained'):
        train(cfg)


def test_averaged_weights_are_what_is_evaluated(tmp_path):
    cfg = tiny.config(tmp_path)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.5))
    runner = train(cfg)
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    # MMEngine swaps: the averaged weights are in state_dict, the trained ones in ema_state_dict
    key = 'model.backbone.conv1.weight'
    assert not torch.equal(saved['state_dict'][key], stp_of(runner).state_dict()[key])
    stp = tiny.stp()
    stp.load_state_dict(saved['state_dict'])
    stp.pool.load_state_dict(saved[STATE]['pool'])
    assert subnet_metric(runner) == calibrated_accuracy(stp, runner)


def test_few_visits_are_warned_of(tmp_path, monkeypatch):
    cfg = tiny.config(tmp_path, train_cfg__max_epochs=1)
    runner = Runner.from_cfg(cfg)
    warnings = []
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    PoolHook(end=0.5).before_train(_with_dataloader(runner))
    assert '0.4 visits each' in warnings[0]
    assert 'train longer' in warnings[0]


def _with_dataloader(runner):
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    return runner


def test_hooks_need_the_algorithm(tmp_path):
    cfg = tiny.config(tmp_path)
    cfg.model = cfg.model.model
    with pytest.raises(TypeError, match=r'model\.type to be mmstp\.STP, not ImageClassifier'):
        train(cfg)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: PoolHook(interval=0), r'PoolHook\.interval=0'),
        (lambda: PoolHook(end=-0.1), r'PoolHook\.end=-0\.1'),
        (lambda: SubnetEvalHook(num_images=0), r'SubnetEvalHook\.num_images=0'),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- a run that could not be used -----------------------------------------------------------------


@pytest.mark.parametrize('hooks', [[], [dict(type='mmstp.SubnetEvalHook', num_images=32)]])
def test_a_run_that_nothing_drives_ends_before_its_first_step(hooks, tmp_path):
    cfg = tiny.config(tmp_path)
    cfg.custom_hooks = hooks
    with pytest.raises(RuntimeError, match=r"nothing shrinks the pool.*type='mmstp\.PoolHook'"):
        train(cfg)
    assert not list(tmp_path.glob('*.pth'))


def test_two_drivers_are_refused(tmp_path):
    cfg = tiny.config(tmp_path)
    cfg.custom_hooks.append(dict(type='mmstp.PoolHook'))
    with pytest.raises(RuntimeError, match='two PoolHooks'):
        train(cfg)


def test_a_best_that_nothing_evaluates_is_refused(tmp_path):
    cfg = tiny.config(tmp_path)
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'mmstp.SubnetEvalHook']
    cfg.default_hooks.checkpoint.save_best = 'subnet/accuracy/top1'
    with pytest.raises(RuntimeError, match=r"save_best='subnet/accuracy/top1': nothing evaluates"):
        train(cfg)
    cfg = tiny.config(tmp_path)
    cfg.default_hooks.checkpoint.save_best = 'subnet-50/accuracy/top1'
    with pytest.raises(RuntimeError, match=r"top1': expected a metric of subnet/$"):
        train(cfg)


def test_compiled_training_is_refused(tmp_path):
    cfg = tiny.config(tmp_path)
    cfg.compile = True
    with pytest.raises(RuntimeError, match=r'compile=True: torch\.compile cannot follow'):
        train(cfg)


def test_weights_that_are_not_finite_are_not_saved(finished, tmp_path):
    stp = stp_of(finished)
    before = stp.model.head.fc.bias.data.clone()
    stp.model.head.fc.bias.data[0] = float('nan')
    try:
        with pytest.raises(CheckpointError, match=r'head\.fc\.bias holds numbers .* not finite'):
            finished.save_checkpoint(str(tmp_path), 'nan.pth')
    finally:
        stp.model.head.fc.bias.data = before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(scores=['low']), "score 'low' after"),
        (dict(scores=[float('nan')]), 'score nan after'),
        (dict(visits=[-1]), 'after -1 visits'),
        (dict(scores=[]), '1 architectures, 0 scores'),
        (dict(architectures=['x']), 'the state of the pool is damaged'),
        (dict(random_state=[1]), 'the state of the pool is damaged'),
        (dict(architectures=['((1, 1, 1, 1), (1.0, 1.0, 1.0, 1.0))']), 'does not meet the budget'),
    ],
)
def test_a_state_that_was_changed_by_hand_is_refused(change, message, finished):
    hook = next(hook for hook in finished.hooks if isinstance(hook, PoolHook))
    checkpoint = {}
    hook.before_save_checkpoint(finished, checkpoint)
    checkpoint[STATE]['pool'].update(change)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        hook.after_load_checkpoint(finished, checkpoint)


@pytest.mark.parametrize('size', [10**6, 0, True, '5'])
def test_a_pool_that_began_with_another_size_is_refused(size, finished):
    hook = next(hook for hook in finished.hooks if isinstance(hook, PoolHook))
    checkpoint = {}
    hook.before_save_checkpoint(finished, checkpoint)
    checkpoint[STATE]['pool_size'] = size
    with pytest.raises(CheckpointError, match=rf'its pool began with {size!r} architectures'):
        hook.after_load_checkpoint(finished, checkpoint)
