"""Pure-Python configs, full paths and dumped configs, in every tool."""

import json

import pytest
import torch
from mmengine.config import Config

from mmstp import STP, PoolHook
from mmstp.cli.launch import build_stp, is_detection, is_export, is_stp, load_config
from mmstp.deploy.export import CONFIG, reload, write_export
from tests import tiny

TEXT = """
from mmcv.transforms import Resize
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.hooks import (CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook,
                            ParamSchedulerHook)
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from mmpretrain.datasets import PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import (ClsDataPreprocessor, CrossEntropyLoss, GlobalAveragePooling,
                               ImageClassifier, LinearClsHead, ResNet_CIFAR)
from torch.optim import SGD

from mmstp import Digits, EpochSeedHook, PoolHook, STP, SubnetEvalHook

default_scope = None
data_preprocessor = dict(
    type=ClsDataPreprocessor, num_classes=10, mean=[77.8] * 3, std=[81.2] * 3, to_rgb=False)
model = dict(
    type=STP,
    model=dict(
        type=ImageClassifier,
        backbone=dict(type=ResNet_CIFAR, depth=18, stem_channels=16, base_channels=16),
        neck=dict(type=GlobalAveragePooling),
        head=dict(type=LinearClsHead, num_classes=10, in_channels=128,
                  loss=dict(type=CrossEntropyLoss))),
    input_shape=(3, 16, 16), target=0.4, tolerance=0.1, pool=dict(size=5))
pipeline = [dict(type=Resize, scale=16), dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=16, num_workers=0, collate_fn=dict(type=default_collate),
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=Digits, split='train', pipeline=pipeline, indices=64))
val_dataloader = dict(
    batch_size=16, num_workers=0, collate_fn=dict(type=default_collate),
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=Digits, split='test', pipeline=pipeline, indices=32))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type=Accuracy, topk=(1,))
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.05))
param_scheduler = dict(type=CosineAnnealingLR, T_max=1)
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = test_cfg = dict()
default_hooks = dict(
    timer=dict(type=IterTimerHook), logger=dict(type=LoggerHook, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook), sampler_seed=dict(type=DistSamplerSeedHook),
    checkpoint=dict(type=CheckpointHook, interval=1))
custom_hooks = [dict(type=PoolHook, end=0.75), dict(type=SubnetEvalHook, num_images=32),
                dict(type=EpochSeedHook)]
log_level = 'ERROR'
"""


@pytest.fixture(scope='module')
def pure(tmp_path_factory):
    path = tmp_path_factory.mktemp('pure') / 'pure.py'
    path.write_text(TEXT)
    return path


@pytest.fixture(scope='module')
def run(call, pure, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('run')
    call('train.py', pure, '--work-dir', work_dir)
    return work_dir


@pytest.mark.parametrize('form', ['pure Python', 'dumped'])
def test_all_tools(form, call, pure, run, tmp_path, capsys):
    """The dumped form is the one that the runner leaves in the work dir."""
    config = pure if form == 'pure Python' else run / pure.name
    assert ('type=STP' in config.read_text()) == (form == 'pure Python')
    call('search_space.py', config)
    assert 'met by' in capsys.readouterr().out
    checkpoint, out = run / 'epoch_1.pth', tmp_path / 'out'
    call('test.py', config, checkpoint, '--work-dir', tmp_path / 'test', '--out',
         tmp_path / 'm.json', '--out-item', 'metrics')  # fmt: skip
    call('export.py', config, checkpoint, '--out', out, '--num-images', 32)
    call('test.py', out / 'compact.py', out / 'compact.pth', '--work-dir', tmp_path / 'compact',
         '--out', tmp_path / 'c.json', '--out-item', 'metrics')  # fmt: skip
    both = [json.loads((tmp_path / name).read_text()) for name in ('m.json', 'c.json')]
    assert both[0]['subnet/accuracy/top1'] == both[1]['accuracy/top1']
    hooks = Config.fromfile(out / CONFIG).custom_hooks
    assert [hook['type'].rpartition('.')[2] for hook in hooks] == ['EpochSeedHook']
    call('train.py', config, '--work-dir', run, '--resume',
         '--cfg-options', 'train_cfg.max_epochs=1')  # fmt: skip


@pytest.mark.parametrize('kind', [STP, 'mmstp.STP', 'mmstp.stp.algorithm.STP'])
def test_forms_of_the_algorithm(kind):
    config = tiny.config()
    config.model.type = kind
    assert is_stp(config)
    assert isinstance(build_stp(config), STP)


class OtherSTP(STP):
    """A subclass of one's own."""


def test_subclasses_are_stp_too_and_nothing_else_is():
    assert is_stp(Config({'model': dict(type=OtherSTP)}))
    for model in (dict(type='mmstp.CompactBackbone'), dict(type='none'), dict(type=dict), dict()):
        assert not is_stp(Config({'model': model}))
    assert not is_stp(Config({}))


def test_own_hooks_go_however_they_are_written(tmp_path):
    stp = tiny.stp()
    config = tiny.config()
    config.custom_hooks = [
        dict(type=PoolHook), dict(type='mmstp.stp.hooks.evaluation.SubnetEvalHook'),
        dict(type='PoolHook', _scope_='mmstp') | dict(type='mmstp.PoolHook'),
        dict(type='EMAHook'),
    ]  # fmt: skip
    network = stp.export()
    write_export(tmp_path, network, config, stp, stp.pool.best)
    written = Config.fromfile(tmp_path / CONFIG)
    assert [hook.type for hook in written.custom_hooks] == ['EMAHook']
    images, _ = tiny.batch()
    with torch.no_grad():
        assert torch.equal(reload(tmp_path).eval()(images), network.eval()(images))
    assert is_export(written)


def test_the_scope_of_a_pure_python_config(pure):
    assert not is_detection(load_config(str(pure)))
    assert is_detection(Config({'default_scope': 'mmdet'}))
    assert is_detection(
        Config({'default_scope': None, 'model': dict(type='mmdet.models.RetinaNet')})
    )
