"""A run of the real runner on other numbers of ranks, and of ranks that come and go."""

import copy
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from mmstp.stp.of_runner import stp_of
from tests import tiny
from tests.networks import assert_within
from tests.runs import StopAfter, free_port, one_of, same

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
        cfg.launcher = 'pytorch'
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None,
            find_unused_parameters=False,
        )  # fmt: skip
    return cfg


class Note(Hook):
    """Keeps what each iteration (counted from 1) trained on, drew and found."""

    def __init__(self):
        self.found = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        images = data_batch['inputs'].flatten(1).tolist()
        self.found[runner.iter + 1] = {'images': images}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        pool = stp_of(runner).pool.state_dict()
        scores = [score for score in pool.pop('scores') if score is not None]
        self.found[runner.iter + 1].update(loss=outputs['loss'].item(), scores=scores, pool=pool)


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
