"""A run of the real runner on other numbers of ranks, and of ranks that come and go."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from mmstp import ArchitecturePool
from mmstp.stp import pool, step, wrapper
from mmstp.stp.losses import normalized_kl
from mmstp.stp.of_runner import stp_of
from mmstp.stp.passes import Apart
from tests import tiny
from tests.networks import assert_within
from tests.runs import StopAfter, distribute, free_port, one_of, same

# PyTorch's, of schedules that are stepped in every iteration
pytestmark = pytest.mark.filterwarnings('ignore:Detected call of `scheduler:UserWarning')

IMAGES = 16  # in the batches of all ranks together
LAST = 8  # iterations: two epochs
OPTIONS = {
    'model__survivor': {},
    'model__model__backbone__norm_cfg': dict(type='SyncBN'),
    'train_dataloader__num_workers': 0,
    'optim_wrapper__accumulative_counts': 2,
    'optim_wrapper__clip_grad': dict(max_norm=1.0),
}


class SyncOnCPU(torch.autograd.Function):
    """What `SyncBatchNorm` asks a GPU's kernels for: to normalise by the batches of all ranks."""

    @staticmethod
    def apply(x, weight, bias, running_mean, running_var, eps, momentum, group, ranks):
        dims, shape = [0, 2, 3], (1, -1, 1, 1)
        count = ranks * x[:, 0].numel()
        mean = all_reduce(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = all_reduce((centred**2).sum(dims)) / count
        if running_mean is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance * count / (count - 1), momentum)
        scale = weight * (variance + eps).rsqrt()
        return centred * scale.view(shape) + bias.view(shape)


@contextmanager
def synchronised_on_cpu():
    """Inside, `SyncBatchNorm` runs without a GPU as it is, but for the kernels."""
    module, own = torch.nn.modules.batchnorm, torch.nn.SyncBatchNorm.forward

    def forward(self, x):
        if not self.training:
            return own(self, x)
        with patch.object(torch._C, '_get_privateuse1_backend_name', lambda: 'cpu'):
            return own(self, x)

    with (
        patch.object(module, 'sync_batch_norm', SyncOnCPU),
        patch.object(torch.nn.SyncBatchNorm, 'forward', forward),
        patch.object(DistributedDataParallel, '_passing_sync_batchnorm_handle'),
    ):
        yield


def config(work_dir, ranks):
    cfg = tiny.config(work_dir, train_dataloader__batch_size=IMAGES // ranks, **OPTIONS)
    cfg.custom_hooks[0].end = 6 / LAST
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if ranks > 1:
        distribute(cfg)
    return cfg


class Note(Hook):
    """Keeps what each iteration (counted from 1) trained on, drew and found."""

    def __init__(self):
        self.found = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        images = data_batch['inputs'].flatten(1).tolist()
        self.found[runner.iter + 1] = {'images': images}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        state = stp_of(runner).pool.state_dict()
        scores = [score for score in state.pop('scores') if score is not None]
        self.found[runner.iter + 1].update(loss=outputs['loss'].item(), scores=scores, pool=state)


def part(work_dir, ranks, begin, end):
    """Some iterations, from the checkpoint behind the last of those before."""
    cfg = config(work_dir, ranks)
    if begin:
        cfg.resume, cfg.load_from = True, f'{work_dir}/iter_{begin}.pth'
    with synchronised_on_cpu():
        runner, note = Runner.from_cfg(copy.deepcopy(cfg)), Note()
        runner.register_hook(note)
        runner.register_hook(StopAfter(end))
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    return note.found


def _rank(rank, port, work_dir, ranks, begin, end):
    with one_of(ranks, rank, port):
        torch.save(part(work_dir, ranks, begin, end), f'{work_dir}/{ranks}_{rank}.pth')


def run(work_dir, *parts):
    """A run of parts (ranks, last iteration); what all ranks together had, by iteration."""
    found, begin = {}, 0
    for ranks, end in parts:
        if ranks == 1:
            each = [part(work_dir, 1, begin, end)]
        else:
            arguments = (free_port(), str(work_dir), ranks, begin, end)
            mp.spawn(_rank, args=arguments, nprocs=ranks)
            each = [torch.load(f'{work_dir}/{ranks}_{rank}.pth') for rank in range(ranks)]
        for iteration, one in each[0].items():
            others = [notes[iteration] for notes in each]
            assert all(same(other['pool'], one['pool']) for other in others)
            found[iteration] = {
                **one,
                'images': sorted(image for other in others for image in other['images']),
                'loss': sum(other['loss'] for other in others) / ranks,
            }
        begin = end
    assert list(found) == list(range(1, LAST + 1))
    return found


@pytest.mark.slow
def test_from_two_ranks_to_one_to_four_is_as_one(tmp_path):
    """With norms over all ranks, accumulated and clipped gradients, an average, a survivor.

    From two to one between two accumulated batches, in an epoch; to four when the survivor has
    begun.
    """
    folders = [tmp_path / 'one', tmp_path / 'several']
    expected = run(folders[0], (1, LAST))
    found = run(folders[1], (2, 3), (1, 7), (4, LAST))
    for iteration, one in expected.items():
        other = found[iteration]
        assert other['images'] == one['images']
        assert same(other['pool'], one['pool'])
        assert other['scores'] == pytest.approx(one['scores'], rel=1e-3)
        assert other['loss'] == pytest.approx(one['loss'], rel=1e-3)
    last = [torch.load(folder / f'iter_{LAST}.pth', weights_only=False) for folder in folders]
    for key in ('state_dict', 'ema_state_dict'):
        for name, value in last[0][key].items():
            assert_within(last[1][key][name].float(), value.float(), 1e-3, 0.01), name


# --- targets of their own -------------------------------------------------------------------------


class Ranks:
    """Runs a function as each of some ranks, in threads; `all_reduce` is their mean."""

    def __init__(self, count, monkeypatch):
        self.count, self.own = count, threading.local()
        self.tensors, self.barrier = {}, threading.Barrier(count, timeout=60)
        monkeypatch.setattr(pool.ArchitecturePool, 'draws', count)
        monkeypatch.setattr(step, 'get_rank', lambda: self.own.rank)
        monkeypatch.setattr(step, 'all_reduce', self.mean)

    def mean(self, tensor, op):
        assert op == 'mean'
        self.tensors[self.own.rank] = tensor.clone()
        self.barrier.wait()
        tensor.copy_(torch.stack([self.tensors[rank] for rank in range(self.count)]).mean(0))
        self.barrier.wait()

    def run(self, function):
        def as_rank(rank):
            self.own.rank = rank
            return function(rank)

        with ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(as_rank, range(self.count)))


@pytest.mark.parametrize('options', [{}, {'beta2': 0.0, 'passes': Apart}])
def test_targets_of_their_own_are_one_process_with_all_draws(options, monkeypatch):
    built = tiny.stp(model__pool__per_rank=True).train()
    vars(built).update(options)
    batches = [tiny.batch(seed=seed) for seed in range(2)]
    joint, *ranks = (copy.deepcopy(built) for _ in range(3))

    def steps(rank):
        stp = ranks[rank]
        for _ in range(3):  # of a pool of five: some are drawn twice
            sum(stp(*batches[rank], mode='loss').values()).backward()
            stp.pool.shrink(1)

    with monkeypatch.context() as patched:
        Ranks(2, patched).run(steps)
    for _ in range(3):
        draws = []
        for _ in batches:
            target = joint.pool.sample()
            expanded = [joint.supernet.space.expand(target, joint.pool.rng)] if joint.beta2 else []
            draws.append([target, *expanded])
        for subnets, (images, samples) in zip(draws, batches, strict=True):
            outputs = joint.model(images)
            distances = []
            for subnet in subnets:
                with joint.supernet.activate(subnet):
                    distances.append(normalized_kl(joint.model(images), outputs))
            (joint.model.head._get_loss(outputs, samples)['loss'] + sum(distances)).backward()
            joint.pool.update(subnets[0], distances[0].item())
        joint.pool.shrink(1)
    first, second, expected = (stp.pool.state_dict() for stp in (*ranks, joint))
    assert same(first, second)
    assert first.pop('scores') == pytest.approx(expected.pop('scores'), rel=1e-4)
    assert same(first, expected)
    largest = max(float(parameter.grad.abs().max()) for parameter in joint.parameters())
    for a, b, both in zip(*(stp.parameters() for stp in (*ranks, joint)), strict=True):
        assert_within(a.grad + b.grad, both.grad, 1e-4, largest)


def test_synchronised_norms_cannot_join_different_subnets(monkeypatch):
    monkeypatch.setattr(wrapper, 'is_distributed', lambda: True)
    norms = dict(type='SyncBN')
    with pytest.raises(ValueError, match=r'per_rank=True: backbone\.bn1 is a SyncBatchNorm'):
        tiny.stp(model__pool__per_rank=True, model__model__backbone__norm_cfg=norms)


def test_a_pool_of_one_process_draws_one():
    made = tiny.stp(model__pool__per_rank=True).pool
    assert (made.per_rank, made.draws) == (True, 1)
    with pytest.raises(ValueError, match=r"pool\.per_rank='yes': expected True or False"):
        ArchitecturePool(list(made.scores), per_rank='yes')
