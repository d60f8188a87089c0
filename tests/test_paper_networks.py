"""STP trains each of the paper's five networks: slim ones, on the digits, through the runner."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner

from mmstp.cli.launch import load_config
from mmstp.stp.of_runner import stp_of
from tests import tiny

# mmcv, of MobileNetV3's activation
pytestmark = pytest.mark.filterwarnings('ignore:In MMCV v1.4.4, we modified the default value')


def classifier(features: int, head: str = 'LinearClsHead', **backbone: Any) -> dict:
    neck = dict(type='GlobalAveragePooling') if head == 'LinearClsHead' else None
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=neck,
        head=dict(type=head, num_classes=10, in_channels=features),
    )


def transformer(features: int, head: str = 'LinearClsHead', **backbone: Any) -> dict:
    """With the initialisation of the configs: mmpretrain's heads may start at zero."""
    network = classifier(features, head, **backbone)
    network['head']['init_cfg'] = None
    network['init_cfg'] = [
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ]
    return network


SGD = dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
ADAMW = dict(type='AdamW', lr=2e-3, weight_decay=0.05)
# of the network, its input's height and width, optimizer, space, and epochs until it is accurate
FIVE = {
    'resnet50': (
        classifier(512, type='ResNet_CIFAR', depth=50, stem_channels=16, base_channels=16),
        *(16, SGD, {}, 8),
    ),
    'mobilenet_v3': (
        classifier(576, type='MobileNetV3', arch='small'),
        *(32, SGD, {}, 8),
    ),
    'wide_resnet': (
        classifier(128, type='mmstp.WideResNet', depth=16, widen_factor=2),
        *(16, SGD, {}, 6),
    ),
    'vit': (
        transformer(
            64,
            'VisionTransformerClsHead',
            type='VisionTransformer',
            arch=dict(embed_dims=64, num_layers=6, num_heads=4, feedforward_channels=128),
            img_size=16,
            patch_size=4,
            qkv_bias=False,
        ),
        *(16, ADAMW, dict(cut=3), 16),
    ),
    'swin': (
        transformer(
            64,
            type='SwinTransformer',
            arch=dict(embed_dims=32, depths=[2, 4], num_heads=[2, 4]),
            img_size=16,
            patch_size=2,
            window_size=4,
            stage_cfgs=dict(block_cfgs=dict(ffn_ratio=2)),
            drop_path_rate=0.0,
            out_indices=(1,),
        ),
        *(16, ADAMW, {}, 10),
    ),
}


def run(name, cfg, work_dir):
    """Trains the network of that name as the config says."""
    network, size, optimizer, space, _ = FIVE[name]
    cfg.model.model = ConfigDict(copy.deepcopy(network))
    cfg.model.input_shape = (3, size, size)
    cfg.model.space.update(space)
    cfg.optim_wrapper.optimizer = ConfigDict(optimizer)
    # no random crop: without it few steps suffice
    pipeline = [dict(type='Resize', scale=size), dict(type='PackInputs')]
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline = pipeline
    cfg.work_dir = str(work_dir)
    cfg.log_level = 'ERROR'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('name', FIVE)
def test_a_few_steps(name, tmp_path):
    options = dict(
        train_dataloader__num_workers=0,
        train_dataloader__dataset__indices=32,
        train_cfg__val_interval=2,
    )
    runner = run(name, tiny.config(**options), tmp_path)
    scalars = runner.message_hub.log_scalars
    for key in ('loss', 'loss_ce', 'loss_target', 'loss_support'):
        losses, _ = scalars[f'train/{key}'].data
        assert len(losses) == 4
        assert np.isfinite(losses).all(), key
        assert losses.any(), key

    first, last = (
        torch.load(tmp_path / f'epoch_{epoch}.pth', weights_only=False) for epoch in (1, 2)
    )
    for key, tensor in first['state_dict'].items():
        if tensor.dim() > 1 and tensor.is_floating_point():
            assert not torch.equal(tensor, last['state_dict'][key]), key
            assert last['state_dict'][key].isfinite().all(), key

    assert len(first['mmstp']['pool']['architectures']) > 1
    pool = stp_of(runner).pool
    assert len(pool) == 1
    assert all(np.isfinite(score) for score in pool.scores.values())
    assert 0 <= scalars['val/subnet/accuracy/top1'].current() <= 100
    assert 0 <= scalars['val/accuracy/top1'].current() <= 100


@pytest.mark.slow
@pytest.mark.parametrize('name', FIVE)
def test_the_subnet_learns(name, tmp_path):
    """To a quarter of the multiply-adds, cut out and evaluated on the 445 test images."""
    cfg = load_config(str(tiny.ROOT / 'configs/stp/digits.py'))
    epochs = FIVE[name][-1]
    cfg.merge_from_dict(
        {
            'model.target': 0.25,
            'model.tolerance': 0.05,
            'train_cfg.max_epochs': epochs,
            'train_cfg.val_interval': epochs,
            'param_scheduler.end': epochs,
            'param_scheduler.T_max': epochs,
            'randomness.seed': 0,
        }
    )
    if FIVE[name][2] is ADAMW:
        # Transformers take longer until their logits tell the classes apart. Distillation at full
        # weight before that pulls all passes to one constant output, where they stay.
        cfg.model.warmup = 0.7
        cfg.train_dataloader.batch_size = 32
    runner = run(name, cfg, tmp_path)
    stp, scalars = stp_of(runner), runner.message_hub.log_scalars
    supernet = stp.supernet
    macs, dense = supernet.cost.macs([stp.pool.best, supernet.space.largest])
    assert macs / dense == pytest.approx(0.25, rel=0.05)
    accuracy = scalars['val/subnet/accuracy/top1'].current()
    print(f'{name}: {stp.pool.best} subnet {accuracy:.1f}, '
          f'main {scalars["val/accuracy/top1"].current():.1f}')  # fmt: skip
    assert accuracy > 60
