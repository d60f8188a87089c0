"""Every config under configs/stp: it parses, says what its name says, and reads its data."""

import copy
import functools
import pickle
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR100
from mmpretrain.registry import MODELS
from PIL import Image

from mmstp.datasets import check_datasets

ROOT = Path(__file__).parents[1] / 'configs' / 'stp'
PATHS = sorted(ROOT.rglob('*.py'))
PAPER_PATHS = [path for path in PATHS if path.stem != 'digits']

# Appendix A of the paper: epochs, batch, learning rate, weight decay, steps (none: cosine)
SCHEDULES = {
    ('r50', 'cifar100'): (500, 64, 0.05, 3e-4, ()),
    ('wrn28_10', 'cifar100'): (200, 128, 0.1, 5e-4, ()),
    ('r50', 'tiny_imagenet'): (500, 64, 0.1, 3e-4, (250, 375)),
    ('wrn28_10', 'tiny_imagenet'): (200, 128, 0.2, 1e-4, (100, 150)),
    ('r50', 'imagenet'): (200, 512, 0.2, 1e-4, ()),
}
GPUS = {'imagenet': 8}
TARGETS = {
    'imagenet': (15, 25, 35, 55, 75),
    'cifar100': (15, 35, 55),
    'tiny_imagenet': (15, 35, 55),
}


@functools.cache
def load(path: Path) -> Config:
    """The config; not to be changed, for the tests share it."""
    return Config.fromfile(path)


def read_name(path: Path) -> tuple[str, str, int]:
    """Network, dataset and target in percent, from a file's name."""
    match = re.fullmatch(r'(r50|wrn28_10)(?:_(cifar100|tiny_imagenet))?_(\d+)pct', path.stem)
    assert match, path.name
    return match[1], match[2] or 'imagenet', int(match[3])


def test_there_is_a_config_for_every_result_of_the_paper():
    expected = {(n, d, target) for n, d in SCHEDULES for target in TARGETS[d]}
    assert {read_name(path) for path in PAPER_PATHS} == expected


@pytest.mark.parametrize('path', PAPER_PATHS, ids=lambda path: path.stem)
def test_config_is_the_paper_s(path):
    cfg = load(path)
    network, dataset, target = read_name(path)
    epochs, batch, lr, weight_decay, steps = SCHEDULES[network, dataset]

    assert cfg.model.target == pytest.approx(target / 100)
    assert cfg.model.get('target_ce') == cfg.model.warmup == 0
    assert cfg.model.pool['size'] >= 1000
    assert cfg.model.space.widths == (0.3, 0.5, 0.7, 0.9, 1.0)

    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.optim_wrapper.type == 'OptimWrapper'  # no AMP
    assert (optimizer.lr, optimizer.weight_decay) == (lr, weight_decay)
    assert (optimizer.type, optimizer.momentum, optimizer.nesterov) == ('SGD', 0.9, True)
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_dataloader.batch_size * GPUS.get(dataset, 1) == batch
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert epochs % cfg.train_cfg.val_interval == 0  # the last epoch is validated

    scheduler = cfg.param_scheduler
    if steps:
        assert (scheduler.type, scheduler.gamma) == ('MultiStepLR', 0.1)
        assert tuple(scheduler.milestones) == steps
    else:
        assert (scheduler.type, scheduler.begin) == ('CosineAnnealingLR', 0)
        assert scheduler.T_max == scheduler.end == epochs


@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_parts_of_a_config_agree(path):
    cfg = load(path)
    classifier = cfg.model.model
    assert cfg.default_scope == 'mmpretrain'
    assert cfg.custom_imports['imports'] == ['mmstp']
    assert classifier.head.num_classes == cfg.data_preprocessor.num_classes
    assert [hook.type for hook in cfg.custom_hooks] == [
        'mmstp.PoolHook',
        'mmstp.SubnetEvalHook',
        'mmstp.EpochSeedHook',
    ]
    assert cfg.default_hooks.checkpoint.save_best == 'subnet/accuracy/top1'
    assert cfg.val_dataloader == cfg.test_dataloader


# One target of each: the network does not depend on it.
@pytest.mark.parametrize('name', [p.stem for p in PATHS if p.stem.endswith(('_15pct', 'digits'))])
def test_head_takes_what_the_backbone_gives(name):
    cfg = load(ROOT / f'{name}.py').model
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(cfg.model.backbone).to('meta')
    features = backbone(torch.zeros(2, *cfg.input_shape, device='meta'))[-1]
    assert features.shape[1] == cfg.model.head.in_channels
    assert min(features.shape[2:]) > 1


@pytest.mark.parametrize('path', PAPER_PATHS, ids=lambda path: path.stem)
def test_missing_data_are_reported_before_anything_is_built(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'^train_dataloader\.dataset\.data_root = '):
        check_datasets(load(path))


def jpeg(size: tuple[int, int]) -> bytes:
    """The bytes of a JPEG of random pixels, (width, height) large."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format='JPEG')
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def make_imagenet(root: Path) -> None:
    """One image in each of the 1,000 class folders."""
    content = jpeg((80, 60))
    for split in ('train', 'val'):
        for i in range(1000):
            write(root / split / f'n{i:08d}' / f'{split}_{i}.JPEG', content)


def make_cifar100(root: Path) -> None:
    """Pickles like the archive's: rows of 3,072 bytes, planes of red, green and blue."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        entry = dict(
            filenames=[f'{split}_{i}.png' for i in range(10)],
            batch_label=f'{split}ing batch 1 of 1',
            fine_labels=rng.integers(0, 100, 10).tolist(),
            coarse_labels=rng.integers(0, 20, 10).tolist(),
            data=rng.integers(0, 256, (10, 3072), dtype=np.uint8),
        )
        write(root / 'cifar-100-python' / split, pickle.dumps(entry, protocol=2))


def make_tiny_imagenet(root: Path) -> None:
    """One image in each of the 200 classes, five for validation."""
    content, wnids = jpeg((64, 64)), [f'n{i:08d}' for i in range(200)]
    for wnid in wnids:
        write(root / 'train' / wnid / 'images' / f'{wnid}_0.JPEG', content)
    for i in range(5):
        write(root / 'val' / 'images' / f'val_{i}.JPEG', content)
    write(root / 'wnids.txt', '\n'.join(wnids).encode())
    write(root / 'words.txt', '\n'.join(f'{wnid}\ta name' for wnid in wnids).encode())
    lines = (f'val_{i}.JPEG\t{wnids[i]}\t0\t0\t63\t63' for i in range(5))
    write(root / 'val' / 'val_annotations.txt', '\n'.join(lines).encode())


@pytest.mark.parametrize(
    ('name', 'folder', 'make'),
    [
        ('r50_15pct', 'imagenet', make_imagenet),
        ('r50_cifar100_15pct', 'cifar100', make_cifar100),
        ('r50_tiny_imagenet_15pct', 'tiny-imagenet-200', make_tiny_imagenet),
        ('digits', None, None),
    ],
)
def test_one_batch_of_every_dataset(name, folder, make, tmp_path, monkeypatch):
    if make is not None:
        make(tmp_path / 'data' / folder)
    # mmpretrain compares the archive's checksums, which generated files cannot have.
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', None]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', None]])
    monkeypatch.chdir(tmp_path)  # the configs' paths are relative

    cfg = copy.deepcopy(load(ROOT / f'{name}.py'))
    check_datasets(cfg)
    num_classes = cfg.data_preprocessor.num_classes
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        preprocessor = MODELS.build(cfg.data_preprocessor)
        for dataloader_cfg in (cfg.train_dataloader, cfg.val_dataloader):
            dataloader_cfg.update(batch_size=4, num_workers=0)
            batch = preprocessor(next(iter(Runner.build_dataloader(dataloader_cfg))), training=True)
            labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
            assert batch['inputs'].shape == (4, *cfg.model.input_shape)
            assert batch['inputs'].dtype == torch.float32
            assert labels.shape == (4,)
            assert ((labels >= 0) & (labels < num_classes)).all()
