"""The survivor phase: from the subnet's function on, resumed, exported, averaged, on two ranks."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.runner import Runner

from mmstp.cli.launch import build_stp, load_search
from mmstp.errors import ArchitectureError, CheckpointError, FieldError
from mmstp.stp.hooks.pool import STATE
from mmstp.stp.of_runner import stp_of
from mmstp.stp.search_state import read_search
from mmstp.stp.step import survivor_losses
from mmstp.stp.survivor import hand_over
from tests import tiny
from tests.runs import (
    StopBefore,
    assert_resumed_is_whole,
    distribute,
    free_port,
    one_of_two,
    scalars,
    train,
)

# 16 iterations; the search ends with the 6th, in the middle of the second epoch
OPTIONS = {
    'train_cfg__max_epochs': 4,
    'param_scheduler__end': 4,
    'param_scheduler__T_max': 4,
    'model__survivor': {'lr': 0.5},
}
END = 6


def config(work_dir, **options):
    cfg = tiny.config(work_dir, **{**OPTIONS, **options})
    cfg.custom_hooks[0].end = END / 16
    return cfg


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    return train(config(tmp_path_factory.mktemp('run')))


def ready(**options):
    """A search that has ended, with gradients' averages in its optimizer."""
    stp = tiny.stp(model__survivor={}, **options).train()
    optimizer = torch.optim.SGD(
        [{'params': [p], 'lr': 0.01 * (i + 1)} for i, p in enumerate(stp.parameters())],
        lr=0.1, momentum=0.9, weight_decay=1e-3,
    )  # fmt: skip
    images, samples = tiny.batch()
    sum(v for k, v in stp(images, samples, mode='loss').items() if 'loss' in k).backward()
    optimizer.step()
    optimizer.zero_grad()
    stp.pool.shrink(len(stp.pool) - 1)
    return stp, optimizer


def test_it_starts_from_the_subnets_function():
    stp, _ = ready()
    images, _ = tiny.batch()
    with stp.supernet.activate(stp.pool.best), torch.no_grad():
        expected = stp.model(images, mode='tensor')
    stp.go_alone()
    assert stp.model.training
    assert torch.equal(stp.model(images, mode='tensor'), expected)


def test_its_first_step_is_the_one_that_the_active_subnet_would_take():
    stp, optimizer = ready()
    images, samples = tiny.batch(seed=1)
    # one way: a step of the main network while it is the subnet
    main = copy.deepcopy(stp)
    copied = dict(zip(stp.parameters(), main.parameters(), strict=True))
    other = torch.optim.SGD(
        [{**group, 'params': [copied[p] for p in group['params']]} for group in
         optimizer.param_groups]
    )  # fmt: skip
    for parameter, state in optimizer.state.items():
        other.state[copied[parameter]] = copy.deepcopy(state)
    with main.supernet.activate(main.pool.best):
        main.model(images, samples, mode='loss')['loss'].backward()
    kept = main.supernet.kept(main.pool.best)
    other.step()
    # the other way: cut out, with its part of the optimizer's state
    architecture = stp.pool.best
    stp.go_alone()
    hand_over(optimizer, stp.supernet, {architecture: stp.model})
    survivor_losses(stp, images, samples)['loss_ce'].backward()
    optimizer.step()
    trained = dict(main.model.named_parameters())
    for key, parameter in stp.model.named_parameters():
        expected = trained[key][kept[key]].view_as(parameter)
        assert torch.allclose(parameter, expected, rtol=1e-5, atol=1e-7), key


def test_every_parameter_stays_in_its_group():
    stp, optimizer = ready()
    before = {
        key: group['lr']
        for (key, _), group in zip(
            stp.model.named_parameters(), optimizer.param_groups, strict=True
        )
    }
    smallest = stp.supernet.space.smallest
    network = stp.supernet.export(smallest)
    hand_over(optimizer, stp.supernet, {smallest: network})
    rates = [group['lr'] for group in optimizer.param_groups]
    assert rates == [before[key] for key, _ in network.named_parameters()]
    assert len(rates) < len(before)  # blocks are gone, and their groups with them


def test_state_of_another_shape_starts_anew():
    stp, _ = ready()
    optimizer = torch.optim.SGD(stp.parameters(), lr=0.1)
    for parameter in stp.parameters():
        optimizer.state[parameter] = {'step': 3, 'rows': torch.ones(7, 7, 7)}
    hand_over(optimizer, stp.supernet, {stp.pool.best: stp.export()})
    assert all(state == {} for state in optimizer.state.values())


def test_what_is_logged(finished):
    lines = [line for line in scalars(finished.work_dir) if 'loss' in line]
    names = [{name for name in line if name.startswith('loss')} for line in lines]
    assert names[:END] == [{'loss', 'loss_ce', 'loss_target', 'loss_support'}] * END
    assert names[END:] == [{'loss', 'loss_ce'}] * (16 - END)
    rates = [line['lr'] for line in lines]
    assert rates[END:] == pytest.approx(
        [0.5 * rates[0] * (1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]
    )
    values = [line for line in scalars(finished.work_dir) if 'accuracy/top1' in line]
    assert values[-1]['subnet/accuracy/top1'] == values[-1]['accuracy/top1']


def test_the_network_is_as_small_as_the_subnet(finished):
    stp = stp_of(finished)
    assert stp.alone
    described = stp.supernet.describe(stp.pool.best)
    assert sum(p.numel() for p in stp.parameters()) == described['params']


TAUGHT, AVERAGED = {'model__survivor': {'teacher': 'main'}}, {'ema': True}


@pytest.mark.parametrize(
    ('epoch', 'options'),  # the first is of the search, the second of the survivor
    [
        (2, TAUGHT),
        (1, AVERAGED),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in
          [(1, {}), (2, {}), (1, TAUGHT), (2, AVERAGED)]),
    ],
)  # fmt: skip
def test_resumed_run_equals_an_uninterrupted_one(epoch, options, tmp_path, finished):
    assert_resumed_is_whole(config, tmp_path, epoch, options, finished)


def test_teacher_is_the_main_network_as_it_was(tmp_path):
    runner = train(config(tmp_path, model__survivor={'teacher': 'main'}))
    lines = [line for line in scalars(runner.work_dir) if 'loss' in line]
    assert all('loss_teacher' in line for line in lines[END:])
    stp = stp_of(runner)
    assert not stp.teacher.training
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['state_dict']
    for key, value in stp.teacher.state_dict().items():
        assert torch.equal(saved[f'teacher.{key}'], value), key


def test_checkpoint_is_read_and_exported(finished):
    checkpoint = str(Path(finished.work_dir) / 'epoch_4.pth')
    stp = build_stp(config(None))
    load_search(stp, checkpoint)
    images, _ = tiny.batch()
    trained = stp_of(finished)
    with torch.no_grad():
        expected = trained.eval()(images, mode='tensor')
        assert torch.equal(stp.export().eval()(images, mode='tensor'), expected)
    other = stp.supernet.space.largest
    with pytest.raises(ArchitectureError, match='is trained alone in this run'):
        stp.export(other)


@pytest.mark.parametrize('survivor', [None, {'teacher': 'main'}])
def test_checkpoint_needs_the_config_of_its_run(survivor, finished):
    checkpoint = str(Path(finished.work_dir) / 'epoch_4.pth')
    cfg = config(None, model__survivor=survivor)
    with pytest.raises(CheckpointError, match=r'of a survivor without a teacher.*model\.survivor'):
        load_search(build_stp(cfg), checkpoint)


@pytest.mark.parametrize('change', [{'alone': 1}, {'alone': 'yes'}])
def test_a_damaged_state_is_refused(change, finished):
    saved = torch.load(Path(finished.work_dir) / 'epoch_4.pth', weights_only=False)
    with pytest.raises(CheckpointError, match='the state of the search is damaged: alone is'):
        read_search(build_stp(config(None)), {**saved[STATE], **change})


def test_search_that_ends_earlier_when_resumed_has_the_survivor_that_is_trained(tmp_path):
    cfg = config(tmp_path)
    cfg.custom_hooks[0].end = 0.9
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.register_hook(StopBefore(1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    cfg.custom_hooks[0].end = 0.1
    cfg.resume = True
    stp = stp_of(train(cfg))
    described = stp.supernet.describe(stp.pool.best)
    assert sum(p.numel() for p in stp.parameters()) == described['params']
    load_search(build_stp(cfg), str(tmp_path / 'epoch_4.pth'))


@pytest.mark.parametrize(('epochs', 'told'), [(4, False), (12, True)])
@pytest.mark.parametrize('preset', ['paper', 'long'])
def test_survivor_that_goes_on_to_another_length_is_told_of_its_rate(
    preset, epochs, told, tmp_path, monkeypatch
):
    cfg = config(tmp_path, model__preset=preset, train_cfg__max_epochs=4)
    if preset == 'long':
        cfg.custom_hooks[0].end = None  # the preset's: the search begins and ends in the middle
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.register_hook(StopBefore(3))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    cfg.resume, cfg.train_cfg.max_epochs = True, epochs
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    warnings = []
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    runner.train()
    assert any('falls to 0 until 16,' in line for line in warnings) == told
    ends_at = f'the training ends at iteration {4 * epochs}'
    assert any(ends_at in line for line in warnings) == told


def test_search_that_leaves_nothing_is_refused(tmp_path):
    cfg = config(tmp_path)
    cfg.custom_hooks[0].end = 1.0
    with pytest.raises(ValueError, match=r'PoolHook\.end=1\.0: the search takes all 16 iterations'):
        train(cfg)


# PyTorch's, of schedules that are stepped in every iteration
@pytest.mark.filterwarnings('ignore:Detected call of `scheduler:UserWarning')
def test_gradients_that_are_accumulated_are_not_torn_apart(tmp_path):
    runner = train(config(tmp_path, optim_wrapper__accumulative_counts=4))
    names = [set(line) for line in scalars(runner.work_dir) if 'loss' in line]
    # the search ends with the 6th iteration, the step with the 8th
    assert ['loss_target' in name for name in names] == [True] * 8 + [False] * 8


def test_without_a_teacher_the_main_network_is_gone(finished):
    assert all(p.device.type == 'meta' for p in stp_of(finished).supernet.model.parameters())


def test_its_rate_falls_where_the_config_has_no_schedule(tmp_path):
    runner = train(config(tmp_path, param_scheduler=None))
    rates = [line['lr'] for line in scalars(runner.work_dir) if 'loss' in line]
    assert rates[:END] == [0.05] * END
    for i, rate in enumerate(rates[END:]):
        assert rate == pytest.approx(0.025 * (1 + math.cos(math.pi * i / (16 - END))) / 2)


def test_momentum_begins_anew_too(tmp_path):
    cfg = config(tmp_path)
    cfg.param_scheduler = [
        cfg.param_scheduler,
        dict(type='LinearMomentum', start_factor=0.5, by_epoch=False, end=12),
    ]
    runner = train(cfg)
    assert runner.optim_wrapper.param_groups[0]['momentum'] == 0.9


def test_the_survivors_own_head_is_asked_what_it_predicts():
    stp, _ = ready()
    stp.go_alone()
    assert stp.task.prediction.head is stp.model.head


def test_cumulative_statistics_begin_anew():
    stp, _ = ready()
    for module in stp.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    stp.go_alone()
    norm = stp.model.backbone.norm1
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))


def test_tested_run_reports_the_survivor(finished, tmp_path):
    cfg = config(tmp_path)
    cfg.load_from = str(Path(finished.work_dir) / 'epoch_4.pth')
    metrics = Runner.from_cfg(cfg).test()
    assert metrics['subnet/accuracy/top1'] == metrics['accuracy/top1']
    last = [line for line in scalars(finished.work_dir) if 'accuracy/top1' in line][-1]
    assert metrics['accuracy/top1'] == pytest.approx(last['accuracy/top1'])


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'lr': 0}, ValueError, r'model\.survivor\.lr=0: expected a number above 0'),
        ({'teacher': 'mean'}, ValueError, r"model\.survivor\.teacher='mean': expected one of"),
        ({'rate': 1}, FieldError, r'model\.survivor.*rate'),
        (True, FieldError, r'model\.survivor=True: expected a dict'),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        tiny.stp(model__survivor=options)


def _rank(rank: int, port: int, out: str) -> None:
    with one_of_two(rank, port):
        cfg = config(Path(out) / 'run', model__survivor={'teacher': 'main'})
        distribute(cfg)
        stp = stp_of(train(cfg))
        tensors = [*(p.detach() for p in stp.parameters()), *stp.teacher.buffers()]
        torch.save([stp.alone, tensors], f'{out}/{rank}.pth')


def test_two_ranks_agree(tmp_path):
    """Also on the teacher, whose norm statistics were of the images of one rank."""
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    (alone, first), (_, second) = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert alone
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
