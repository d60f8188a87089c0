"""Every config under configs/stp: it parses, says what its name says, and reads its data."""

import copy
import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from mmstp.datasets.check import check_datasets
from tests.dataset_files import (
    accept_generated_cifar100,
    make_cifar100,
    make_imagenet,
    make_tiny_imagenet,
)

ROOT = Path(__file__).parents[1] / 'configs' / 'stp'
PATHS = sorted(ROOT.rglob('*.py'))
OURS = ('digits', 'fashion_mnist')  # data sets that the paper does not have
PAPER_PATHS = [path for path in PATHS if not any(name in path.stem for name in OURS)]

# Appendix A of the paper: epochs, batch, learning rate, weight decay, steps (none: cosine)
SCHEDULES = {
    ('r50', 'cifar100'): (500, 64, 0.05, 3e-4, ()),
    ('mbv3', 'cifar100'): (500, 64, 0.05, 3e-4, ()),
    ('wrn28_10', 'cifar100'): (200, 128, 0.1, 5e-4, ()),
    ('vit', 'cifar100'): (200, 128, 0.003, 0.05, ()),
    ('swin', 'cifar100'): (200, 128, 0.001, 0.05, ()),
    ('r50', 'tiny_imagenet'): (500, 64, 0.1, 3e-4, (250, 375)),
    ('mbv3', 'tiny_imagenet'): (500, 64, 0.1, 3e-4, (250, 375)),
    ('wrn28_10', 'tiny_imagenet'): (200, 128, 0.2, 1e-4, (100, 150)),
    ('r50', 'imagenet'): (200, 512, 0.2, 1e-4, ()),
}
WARMUP = {'vit': 10, 'swin': 10}  # epochs
GPUS = {'imagenet': 8}
TARGETS = {
    'imagenet': (15, 25, 35, 55, 75),
    'cifar100': (15, 35, 55),
    'tiny_imagenet': (15, 35, 55),
}
TRANSFORMERS = ('vit_cifar100_15pct', 'swin_cifar100_15pct')


@functools.cache
def load(path: Path) -> Config:
    """The config; not to be changed, for the tests share it."""
    return Config.fromfile(path)


def read_name(path: Path) -> tuple[str, str, int]:
    """Network, dataset and target in percent, from a file's name."""
    networks = '|'.join({network for network, _ in SCHEDULES})
    match = re.fullmatch(rf'({networks})(?:_(cifar100|tiny_imagenet))?_(\d+)pct', path.stem)
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
    assert cfg.model.preset == 'paper'
    assert not {'target_ce', 'warmup', 'survivor'} & set(cfg.model)
    assert cfg.custom_hooks[0] == dict(type='mmstp.PoolHook')
    assert cfg.model.pool['size'] >= 1000
    assert cfg.model.space.widths == (0.3, 0.5, 0.7, 0.9, 1.0)

    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.optim_wrapper.type == 'OptimWrapper'  # no AMP
    assert (optimizer.lr, optimizer.weight_decay) == (lr, weight_decay)
    if network in WARMUP:
        assert (optimizer.type, set(optimizer)) == ('AdamW', {'type', 'lr', 'weight_decay'})
    else:
        assert (optimizer.type, optimizer.momentum, optimizer.nesterov) == ('SGD', 0.9, True)
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_dataloader.batch_size * GPUS.get(dataset, 1) == batch
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert epochs % cfg.train_cfg.val_interval == 0  # the last epoch is validated

    scheduler, warmup = cfg.param_scheduler, WARMUP.get(network, 0)
    if warmup:
        linear, scheduler = scheduler
        assert (linear.type, linear.begin, linear.end) == ('LinearLR', 0, warmup)
    if steps:
        assert (scheduler.type, scheduler.gamma) == ('MultiStepLR', 0.1)
        assert tuple(scheduler.milestones) == steps
    else:
        assert (scheduler.type, scheduler.begin) == ('CosineAnnealingLR', warmup)
        assert warmup + scheduler.T_max == scheduler.end == epochs


@pytest.mark.parametrize('name', TRANSFORMERS)
def test_learning_rate_rises_for_ten_epochs_and_falls_to_zero(name):
    cfg, epoch = load(ROOT / f'{name}.py'), 3  # iterations
    peak = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    settings = dict(optimizer=optimizer, epoch_length=epoch)
    schedulers = [PARAM_SCHEDULERS.build(s, default_args=settings) for s in cfg.param_scheduler]

    rates = []
    for _ in range(cfg.train_cfg.max_epochs * epoch):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()

    # mmengine ends a warm-up one iteration early
    top = rates.index(max(rates))
    assert top in (10 * epoch - 1, 10 * epoch)
    assert rates[top] == pytest.approx(peak)
    assert rates[0] < peak / 100
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[10 * epoch :]) < 0)
    assert rates[-1] < peak / 1000


# By hand: patches, class token and positions; 9 layers of norms, attention without a bias of q, k
# and v, and an mlp; the last norm.
VIT_PARAMS = (
    (3 * 4**2 + 1) * 192
    + (1 + 65) * 192
    + 9 * (4 * 192 + 3 * 192**2 + (192**2 + 192) + (2 * 192 * 384 + 384 + 192))
    + 2 * 192
)
# Patches and their norm; blocks of two norms, attention, an mlp and a bias for each offset in the
# window and each head; the two mergings with their norms; the last norm.
SWIN_PARAMS = (
    (3 * 4**2 + 1 + 2) * 96
    + 2 * (8 * 96**2 + 11 * 96 + 7**2 * 3)
    + 6 * (8 * 192**2 + 11 * 192 + 7**2 * 6)
    + 4 * (8 * 384**2 + 11 * 384 + 3**2 * 12)
    + (8 * 96**2 + 8 * 96)
    + (8 * 192**2 + 8 * 192)
    + 2 * 384
)


def test_transformers_are_those_of_lee_et_al():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        vit, swin = (
            MODELS.build(load(ROOT / f'{name}.py').model.model.backbone).to('meta')
            for name in TRANSFORMERS
        )

    assert [layer.attn.num_heads for layer in vit.layers] == [12] * 9
    assert {layer.attn.head_dims for layer in vit.layers} == {16}
    assert {layer.ffn.feedforward_channels / layer.ffn.embed_dims for layer in vit.layers} == {2}
    assert sum(p.numel() for p in vit.parameters()) == VIT_PARAMS == 2_690_496

    blocks = [list(stage.blocks) for stage in swin.stages]
    assert [len(stage) for stage in blocks] == [2, 6, 4]
    assert [stage[0].attn.w_msa.embed_dims for stage in blocks] == [96, 192, 384]
    assert [stage[0].attn.w_msa.num_heads for stage in blocks] == [3, 6, 12]
    assert [{b.attn.window_size for b in stage} for stage in blocks] == [{4}, {4}, {2}]
    mlps = [block.ffn for stage in blocks for block in stage]
    assert {mlp.feedforward_channels / mlp.embed_dims for mlp in mlps} == {2}
    assert sum(p.numel() for p in swin.parameters()) == SWIN_PARAMS == 7_046_298

    # stochastic depth would make the teacher random
    for network in (vit, swin):
        rates = {m.drop_prob for m in network.modules() if type(m).__name__ == 'DropPath'}
        assert rates <= {0.0}


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
# MobileNetV3's activation warns of a change in mmcv 1.4.4.
@pytest.mark.filterwarnings('ignore:In MMCV v1.4.4')
@pytest.mark.parametrize('name', [p.stem for p in PATHS if p.stem.endswith(('_15pct', 'digits'))])
def test_head_takes_what_the_backbone_gives(name):
    cfg = load(ROOT / f'{name}.py').model
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(cfg.model.backbone).to('meta')
    features = backbone(torch.zeros(2, *cfg.input_shape, device='meta'))[-1]
    assert features.shape[1] == cfg.model.head.in_channels
    assert all(side > 1 for side in features.shape[2:])  # a class token has none


@pytest.mark.parametrize(
    'path', [p for p in PATHS if 'digits' not in p.stem], ids=lambda path: path.stem
)
def test_missing_data_are_reported_before_anything_is_built(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'^train_dataloader\.dataset\.data_root = '):
        check_datasets(load(path))


@pytest.mark.parametrize(
    ('name', 'folder', 'make'),
    [
        ('r50_15pct', 'imagenet', make_imagenet),
        ('r50_cifar100_15pct', 'cifar100', make_cifar100),
        ('mbv3_cifar100_15pct', 'cifar100', make_cifar100),
        ('vit_cifar100_15pct', 'cifar100', make_cifar100),
        ('r50_tiny_imagenet_15pct', 'tiny-imagenet-200', make_tiny_imagenet),
        ('mbv3_tiny_imagenet_15pct', 'tiny-imagenet-200', make_tiny_imagenet),
        ('digits', None, None),
    ],
)
def test_one_batch_of_every_dataset(name, folder, make, tmp_path, monkeypatch):
    if make is not None:
        make(tmp_path / 'data' / folder)
    accept_generated_cifar100(monkeypatch)
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


# The pipelines of training, without their last step, which packs.
CROP_AND_FLIP = ['RandomCrop', 'RandomFlip']
PIPELINES = {
    'r50_cifar100': CROP_AND_FLIP,
    'wrn28_10_cifar100': CROP_AND_FLIP,
    'mbv3_cifar100': [*CROP_AND_FLIP, 'Resize'],
    'vit_cifar100': [*CROP_AND_FLIP, 'AutoAugment', 'RandomErasing'],
    'swin_cifar100': [*CROP_AND_FLIP, 'AutoAugment', 'RandomErasing'],
    'r50_tiny_imagenet': ['LoadImageFromFile', *CROP_AND_FLIP],
    'wrn28_10_tiny_imagenet': ['LoadImageFromFile', *CROP_AND_FLIP],
    'mbv3_tiny_imagenet': ['LoadImageFromFile', *CROP_AND_FLIP, 'Resize'],
    'r50': ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip'],
}


@pytest.mark.parametrize('path', PAPER_PATHS, ids=lambda path: path.stem)
def test_augmentation(path):
    cfg = load(path)
    name, _, _ = path.stem.rpartition('_')
    *steps, last = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in steps] == PIPELINES[name]
    assert last.type == 'PackInputs'
    assert ('batch_augments' in cfg.data_preprocessor) == (
        name in ('vit_cifar100', 'swin_cifar100')
    )
    assert not any('Random' in s.type for s in cfg.val_dataloader.dataset.pipeline)
    for step in steps:
        if step.type == 'RandomErasing':
            assert step.erase_prob == 0.25
            assert step.fill_color == cfg.data_preprocessor.mean


def test_autoaugment_is_the_policy_for_cifar10():
    oracle = AutoAugment(AutoAugmentPolicy.CIFAR10)
    amounts = oracle._augmentation_space(10, (331, 331))  # of every operation at levels 0 to 9
    policies = load(ROOT / 'vit_cifar100_15pct.py').cifar10_policies
    assert len(policies) == len(oracle.policies) == 25
    for ours, theirs in zip(policies, oracle.policies, strict=True):
        for operation, (name, prob, level) in zip(ours, theirs, strict=True):
            options = dict(operation)
            axis = {'horizontal': 'X', 'vertical': 'Y'}.get(options.pop('direction', None), '')
            assert options.pop('type').replace('Transform', '') + axis == name
            assert options.pop('prob') == prob
            if level is None:
                assert not options
                continue
            (amount,) = options.values()
            expected = float(amounts[name][0][level]) / (331 if 'Translate' in name else 1)
            assert amount == pytest.approx(expected, rel=1 / 200)  # thresholds from 255 or 256


@pytest.mark.parametrize('name', TRANSFORMERS)
def test_every_other_batch_is_mixed_and_its_loss_is_smoothed(name, tmp_path, monkeypatch):
    make_cifar100(tmp_path / 'data' / 'cifar100')
    accept_generated_cifar100(monkeypatch)
    monkeypatch.chdir(tmp_path)
    cfg = copy.deepcopy(load(ROOT / f'{name}.py'))
    cfg.train_dataloader.update(batch_size=8, num_workers=0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
        MODELS.build(cfg.data_preprocessor)  # building it changes nothing: the next one is the same
        preprocessor = MODELS.build(cfg.data_preprocessor)
        head = MODELS.build(cfg.model.model.head)

    def process(training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        data = preprocessor(copy.deepcopy(batch), training)
        return data['inputs'], torch.stack([s.gt_score for s in data['data_samples']])

    np.random.seed(0)
    plain, hard = process(training=False)
    draws = [process(training=True) for _ in range(200)]
    mixed = [(images, labels) for images, labels in draws if not labels.equal(hard)]
    assert 80 < len(mixed) < 120
    assert all(images.equal(plain) for images, labels in draws if labels.equal(hard))
    for images, labels in mixed:
        assert not images.equal(plain)
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(8))
    # pixels that stay as they were: most in CutMix, almost none in Mixup
    cut = [images for images, _ in mixed if (images == plain).float().mean() > 0.2]
    assert 0.3 < len(cut) / len(mixed) < 0.7

    _, labels = mixed[0]
    samples = copy.deepcopy(batch['data_samples'])
    labels = labels.double()
    for sample, label in zip(samples, labels, strict=True):
        sample.set_gt_score(label)
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0)).double()
    smoothed = 0.9 * labels + 0.1 / 100
    expected = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(head._get_loss(logits, samples)['loss'], expected)
