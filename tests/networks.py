"""Small but real instances of the networks that must work, by name."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import VGG
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Network:
    """How to build a network, and the height and width of its input."""

    build: Callable[[], nn.Module]
    size: int = 32
    slow: bool = False


def classifier(
    features: int, necks: Iterable[dict] = (), classes: int = 10, **backbone: Any
) -> nn.Module:
    """A backbone with pooling and a linear head, so that its last features can be pruned."""
    cfg = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=[*necks, dict(type='GlobalAveragePooling')],
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=features),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'), warnings.catch_warnings():
        # what mmcv says of mmpretrain's VGG
        warnings.filterwarnings('ignore', 'Unnecessary conv bias before batch/instance norm')
        return MODELS.build(copy.deepcopy(cfg))


def _hrnet_stage(block: str, channels: tuple[int, ...]) -> dict:
    return dict(
        num_modules=1,
        num_branches=len(channels),
        block=block,
        num_blocks=(2,) * len(channels),
        num_channels=channels,
    )


SLIM_HRNET = dict(
    stage1=_hrnet_stage('BOTTLENECK', (16,)),
    stage2=_hrnet_stage('BASIC', (16, 32)),
    stage3=_hrnet_stage('BASIC', (16, 32, 64)),
    stage4=_hrnet_stage('BASIC', (16, 32, 64, 128)),
)
SLIM_DENSENET = dict(growth_rate=16, depths=[2, 3, 3, 2], init_channels=32)

_of = functools.partial(functools.partial, classifier)
NETWORKS = {
    'resnet18': Network(_of(512, type='ResNet', depth=18)),
    'resnet34': Network(_of(512, type='ResNet', depth=34), slow=True),
    'resnet50': Network(_of(2048, type='ResNet', depth=50)),
    'resnet101': Network(_of(2048, type='ResNet', depth=101), slow=True),
    'resnet152': Network(_of(2048, type='ResNet', depth=152), slow=True),
    'resnet_v1c': Network(_of(512, type='ResNetV1c', depth=18)),
    'resnet_v1d': Network(_of(2048, type='ResNetV1d', depth=50)),
    'resnet_cifar': Network(_of(2048, type='ResNet_CIFAR', depth=50)),
    'resnext': Network(_of(2048, type='ResNeXt', depth=50, groups=32, width_per_group=4)),
    'seresnet': Network(_of(2048, type='SEResNet', depth=50)),
    'res2net': Network(_of(2048, type='Res2Net', depth=50, scales=4, base_width=26)),
    'regnet': Network(_of(384, type='RegNet', arch='regnetx_400mf')),
    'vgg_bn': Network(_of(512, type='VGG', depth=11, norm_cfg=dict(type='BN'))),
    'vgg': Network(_of(512, type='VGG', depth=11)),
    # its first linear layer takes 7 x 7 positions: no other input size will do
    'vgg_with_classifier': Network(functools.partial(VGG, 11, num_classes=10), size=224, slow=True),
    'densenet': Network(_of(76, type='DenseNet', arch=SLIM_DENSENET)),
    'densenet121': Network(_of(1024, type='DenseNet', arch='121'), slow=True),
    'hrnet': Network(_of(128, type='HRNet', extra=SLIM_HRNET)),
    'hrnet_w18': Network(
        _of(
            2048,
            [dict(type='HRFuseScales', in_channels=(18, 36, 72, 144))],
            type='HRNet',
            arch='w18',
        ),
        slow=True,
    ),
    'mobilenet_v2': Network(_of(1280, type='MobileNetV2')),
    'wrn16_2': Network(_of(128, type='mmstp.WideResNet', depth=16, widen_factor=2)),
    'wrn28_10': Network(_of(640, type='mmstp.WideResNet', depth=28, widen_factor=10), slow=True),
}


class Residual(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class Tiny(nn.Module):
    """For tests that change their network: a second to wrap, two stages of up to three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.stage1 = nn.Sequential(
            nn.Conv2d(16, 16, 1), *(Residual(16, hidden) for hidden in (24, 32))
        )
        self.stage2 = nn.Sequential(nn.Conv2d(16, 40, 3, 2, padding=1), Residual(40, 48))
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


def tiny() -> Tiny:
    """A `Tiny` in eval mode, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tiny()
        randomize(model)
    model.eval()
    return model


TINY_INPUT = torch.zeros(1, 3, 8, 8)


def names(chosen: Iterable[str] = NETWORKS) -> list:
    """Networks as parameters of a test, the large ones marked as slow."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if NETWORKS[name].slow else [])
        for name in chosen
    ]


def build(name: str) -> nn.Module:
    """A network in eval mode whose every channel matters: same name, same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name].build()
        randomize(model)
    model.eval()  # which returns None for some of mmpretrain's backbones
    return model


def randomize(model: nn.Module) -> None:
    """Values that keep all signals alive; fresh networks have branches that start at zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def images(name: str, batch: int = 2, seed: int = 0) -> Tensor:
    """Noise of the size that the network takes."""
    size = NETWORKS[name].size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator)


def tensors(output: Any) -> list[Tensor]:
    """The tensors in whatever a model returns."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def equal(first: Any, second: Any) -> bool:
    """Whether two outputs agree to the bit."""
    first, second = tensors(first), tensors(second)
    return len(first) == len(second) and all(map(torch.equal, first, second))
