"""The smallest STP runs that still have everything: digits, a ResNet-18 of 16 channels."""

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from mmstp import STP
from mmstp.cli.launch import build_stp, load_config
from tests.networks import randomize

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {
    'model.model.backbone.depth': 18,
    'model.model.head.in_channels': 128,
    'model.target': 0.4,
    'model.tolerance': 0.1,
    'model.pool.size': 5,
    'model.pool.seed': 0,
    'model.preset': 'paper',
    'train_dataloader.batch_size': 16,
    'train_dataloader.dataset.indices': 64,
    'train_dataloader.num_workers': 1,
    'val_dataloader.dataset.indices': 32,
    'test_dataloader.dataset.indices': 32,
    'train_cfg.max_epochs': 2,
    'param_scheduler.end': 2,
    'param_scheduler.T_max': 2,
    'default_hooks.logger.interval': 1,
    'randomness.seed': 0,
}
HOOKS = [
    dict(type='mmstp.PoolHook', interval=2, end=0.75),
    dict(type='mmstp.SubnetEvalHook', num_images=32),
    dict(type='mmstp.EpochSeedHook'),
]


def config(work_dir: Path | None = None, **options: Any) -> Config:
    """The demo's config, made tiny; options by dotted name with ``__`` for the dots."""
    dotted = {name.replace('__', '.'): value for name, value in options.items()}
    cfg = load_config(str(ROOT / 'configs/stp/digits.py'), {**OPTIONS, **dotted})
    cfg.custom_hooks = copy.deepcopy(HOOKS)
    cfg.log_level = 'ERROR'
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    return cfg


def stp(**options: Any) -> STP:
    """The algorithm alone, with random weights."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        model = build_stp(config(**options))
        model.init_weights()
    return model


def config_with_stem(work_dir: Path | None = None, **options: Any) -> Config:
    """A slim ResNet-18 with ResNet's own stem on 32x32 pixels, as detectors have it."""
    cfg = config(work_dir, **{'model__target': 0.35, 'model__input_shape': (3, 32, 32), **options})
    cfg.model.model.backbone = dict(type='ResNet', depth=18, stem_channels=16, base_channels=16)
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for transform in cfg[field].dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = 32
            elif transform.type == 'RandomCrop':
                transform.crop_size = 32
    return cfg


def stp_with_stem() -> STP:
    """Its algorithm, with weights and norm statistics that keep every channel alive."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        model = build_stp(config_with_stem())
    randomize(model.model)
    return model


def batch(size: int = 8, seed: int = 0) -> tuple[torch.Tensor, list[DataSample]]:
    """Random images with labels."""
    images = torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return images, [DataSample().set_gt_label(i % 10) for i in range(size)]
