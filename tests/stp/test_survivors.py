"""The survivors of several budgets: each as if it were alone, resumed, evaluated, on two ranks."""

import copy
import functools
import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmstp.cli.launch import build_stp, load_search
from mmstp.errors import ArchitectureError
from mmstp.stp.of_runner import stp_of
from mmstp.stp.pools import Pools
from mmstp.stp.several import Several
from mmstp.stp.survivor import hand_over
from tests import tiny
from tests.runs import assert_resumed_is_whole, free_port, one_of_two, same, scalars, train

TARGETS, LABELS = [0.6, 0.25, 0.405], ['25', '40.5', '60']
OPTIONS = {
    'model__target': TARGETS,
    'model__survivor': {'lr': 0.5},
    'train_cfg__max_epochs': 3,
    'param_scheduler__end': 3,
    'param_scheduler__T_max': 3,
}
END = 6  # of 12 iterations, in the middle of the second epoch


def config(work_dir, **options):
    cfg = tiny.config(work_dir, **{**OPTIONS, **options})
    cfg.custom_hooks[0].end = END / 12
    return cfg


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    return train(config(tmp_path_factory.mktemp('run')))


@functools.cache
def built():
    return tiny.stp(model__target=TARGETS, model__survivor={})


def searched():
    """A search that has ended."""
    stp = copy.deepcopy(built()).train()
    for pool in stp.pools.values():
        pool.shrink(len(pool) - 1)
    return stp


def of_one(pools, label):
    return Pools({label: pools[label]}, {label: pools.budgets[label]})


@pytest.mark.parametrize(
    'options',
    [
        {'optim_wrapper__clip_grad': {'max_norm': 0.3}},
        {'model__survivor': {'teacher': 'main'}, 'model__passes': 'apart'},
        pytest.param(
            {
                'optim_wrapper__accumulative_counts': 2,
                'optim_wrapper__clip_grad': {'type': 'value', 'clip_value': 0.01},
            },
            marks=pytest.mark.slow,
        ),
    ],
)
# PyTorch's, of schedules that are stepped in every iteration
@pytest.mark.filterwarnings('ignore:Detected call of `scheduler:UserWarning')
def test_each_is_to_the_bit_what_it_is_alone(options, tmp_path):
    """In runs without a search, so that all begin with the same weights."""

    def run(name, label=None):
        cfg = config(tmp_path / name, **{**options, 'train_cfg__max_epochs': 1})
        cfg.custom_hooks[0] = dict(type='mmstp.PoolHook', end=0, visits=1)
        runner = Runner.from_cfg(cfg)
        if label is not None:
            stp_of(runner).pools = of_one(stp_of(runner).pools, label)
        runner.train()
        losses = [line for line in scalars(runner.work_dir) if 'loss' in line]
        return stp_of(runner), losses

    together, logged = run('together')
    for label in LABELS:
        alone, own = run(f'alone-{label}', label)
        assert same(alone.model.state_dict(), together.survivors[label].state_dict())
        assert [line['loss_ce'] for line in own] == [line[f'loss_ce-{label}'] for line in logged]


@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.Adam])
def test_each_gets_its_part_of_the_optimizers_state(kind):
    options = {'momentum': 0.9} if kind is torch.optim.SGD else {}
    found = {}
    for label in [None, *LABELS]:
        stp = copy.deepcopy(built()).train()
        stp.driver = stp.pools
        optimizer = kind(stp.parameters(), lr=0.1, **options)
        step(stp, optimizer)
        for pool in stp.pools.values():
            pool.shrink(len(pool) - 1)
        if label is not None:
            stp.pools = of_one(stp.pools, label)
        supernet = stp.supernet
        stp.go_alone()
        networks = {stp.pools[one].best: network for one, network in stp.survivors.items()}
        hand_over(optimizer, supernet, networks)
        step(stp, optimizer, seed=1)
        found[label] = {
            one: [(name, p, optimizer.state[p]) for name, p in network.named_parameters()]
            for one, network in stp.survivors.items()
        }
    together = found.pop(None)
    for label, alone in found.items():
        assert same(alone[label], together[label])


def step(stp, optimizer, seed=0):
    images, samples = tiny.batch(seed=seed)
    stp.parse_losses(stp(images, samples, mode='loss'))[0].backward()
    optimizer.step()
    optimizer.zero_grad()


def test_what_is_logged(finished):
    lines = [line for line in scalars(finished.work_dir) if 'loss' in line]
    names = [{name for name in line if name.startswith('loss')} for line in lines]
    assert names[:END] == [{'loss', 'loss_ce', 'loss_target', 'loss_support'}] * END
    own = {f'loss_ce-{label}' for label in LABELS}
    assert names[END:] == [{'loss', *own}] * (12 - END)
    for line in lines[END:]:
        assert line['loss'] == pytest.approx(sum(line[name] for name in own))
    rates = [line['lr'] for line in lines]
    assert rates[END:] == pytest.approx(
        [0.5 * rates[0] * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    )


def test_each_is_evaluated(finished, tmp_path):
    """The main network's metrics go on as those of the largest."""
    last = [line for line in scalars(finished.work_dir) if 'accuracy/top1' in line][-1]
    own = [last[f'subnet-{label}/accuracy/top1'] for label in LABELS]
    assert last['subnet/accuracy/top1'] == pytest.approx(sum(own) / 3)
    assert last['accuracy/top1'] == own[-1]
    cfg = config(tmp_path)
    cfg.load_from = str(Path(finished.work_dir) / 'epoch_3.pth')
    found = Runner.from_cfg(cfg).test()
    assert {name: found[name] for name in last if 'subnet' in name} == pytest.approx(
        {name: value for name, value in last.items() if 'subnet' in name}
    )
    # one after the other in the place of the main network
    stp = stp_of(finished)
    for label, expected in zip(LABELS, own, strict=True):
        single = Runner.from_cfg(config(tmp_path / label))
        stp_of(single).model = stp.export(stp.pools[label].best)
        single.model.eval()
        for batch in single.val_dataloader:
            outputs = single.model.val_step(batch)
            single.val_evaluator.process(data_samples=outputs, data_batch=batch)
        metrics = single.val_evaluator.evaluate(32)
        assert metrics['accuracy/top1'] == pytest.approx(expected)


@pytest.mark.parametrize(
    ('epoch', 'options'),  # the first is of the search, the second of the survivors
    [
        (1, {'ema': True, 'optim_wrapper__clip_grad': {'max_norm': 0.3}}),
        *(pytest.param(2, options, marks=pytest.mark.slow) for options in
          [{}, {'ema': True}, {'model__survivor': {'teacher': 'main'}}]),
    ],
)  # fmt: skip
def test_resumed_run_equals_an_uninterrupted_one(epoch, options, tmp_path, finished):
    assert_resumed_is_whole(config, tmp_path, epoch, options, finished)


def test_checkpoint_is_read_and_each_exported(finished):
    stp = build_stp(config(None))
    load_search(stp, str(Path(finished.work_dir) / 'epoch_3.pth'))
    images, _ = tiny.batch()
    trained = stp_of(finished).eval()
    assert list(stp.survivors) == LABELS
    for label, network in trained.survivors.items():
        exported = stp.export(stp.pools[label].best).eval()
        with torch.no_grad():
            assert torch.equal(exported(images), network(images))
        assert (
            sum(p.numel() for p in exported.parameters())
            == (stp.supernet.describe(stp.pools[label].best)['params'])
        )
    with pytest.raises(ArchitectureError, match=r'\)\) and \(\(.* are trained alone in this run'):
        stp.export(stp.supernet.space.largest)


def test_one_that_is_bad_alone_leaves_the_batch_out_for_all():
    stp = searched()
    stp.driver, stp.bad_batches.patience = object(), 3
    stp.go_alone()
    optimizer = OptimWrapper(torch.optim.SGD(stp.parameters(), lr=0.1, momentum=0.9))
    stp.bad_batches.guard(optimizer, stp)
    images, samples = tiny.batch()

    def trained():
        losses, _ = stp.parse_losses(stp(images, samples, mode='loss'))
        optimizer.update_params(losses)
        return copy.deepcopy([stp.state_dict(), optimizer.state_dict()])

    before, bias = trained(), stp.survivors['40.5'].head.fc.bias
    handle = stp.survivors['40.5'].head.register_forward_hook(
        lambda _, args, output: output * float('inf')
    )
    assert same(trained(), before)
    assert stp.bad_batches.total == 1
    handle.remove()
    # gradients of one that are not finite keep all from the step
    handle = bias.register_hook(lambda gradient: gradient * float('nan'))
    statistics = stp.survivors['25'].backbone.norm1.running_mean.clone()
    weights = [p.clone() for p in stp.parameters()]
    trained()
    assert same(weights, list(stp.parameters()))
    assert not torch.equal(statistics, stp.survivors['25'].backbone.norm1.running_mean)
    handle.remove()
    assert not same(trained(), before)


def test_what_hooks_set_reaches_all():
    """As they do in the main network, by its parts."""
    stp = searched()
    stp.go_alone()
    stp.head.topk = (1, 3)
    stp.backbone.some_name, loss = 4, torch.nn.CrossEntropyLoss()
    stp.head.loss_module = loss
    stp.head.loss_module.eval()
    assert [network.head.topk for network in stp.survivors.values()] == [(1, 3)] * 3
    assert [network.backbone.some_name for network in stp.survivors.values()] == [4] * 3
    assert all(network.head.loss_module is loss for network in stp.survivors.values())
    assert stp.head.topk == (1, 3)
    assert not hasattr(stp, 'bbox_head')
    with pytest.raises(AttributeError, match='no attribute'):
        stp.model.bbox_head  # noqa: B018


def test_images_are_prepared_once_and_the_largest_predicts():
    stp = searched()
    stp.go_alone()
    stp.eval()
    images, samples = tiny.batch()
    *_, largest = stp.survivors.values()
    assert isinstance(stp.model, Several)
    assert stp.task.prediction.head is largest.head
    assert all(n.data_preprocessor is stp.data_preprocessor for n in stp.survivors.values())
    assert torch.equal(stp(images), largest(images))
    found, expected = (one(images, samples, mode='predict') for one in (stp, largest))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.pred_score, b.pred_score)


def _rank(rank: int, port: int, out: str) -> None:
    with one_of_two(rank, port):
        cfg = config(Path(out) / 'run', model__survivor={'teacher': 'main'})
        cfg.launcher = 'pytorch'
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None,
            find_unused_parameters=False,
        )  # fmt: skip
        stp = stp_of(train(cfg))
        tensors = [*(p.detach() for p in stp.parameters()), *stp.teacher.buffers()]
        torch.save([list(stp.survivors), tensors], f'{out}/{rank}.pth')


@pytest.mark.slow
def test_two_ranks_agree(tmp_path):
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)
    (labels, first), (_, second) = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert labels == LABELS
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
