"""Small but real instances of the networks that must work, by name."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from mmengine.registry import DefaultScope
from mmpretrain.models import VGG
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Network:
    """How to build a network, and the height and width of its input.

    ``other`` is another size that it takes, 0 where there is none.
    """

    build: Callable[[], nn.Module]
    size: int = 32
    slow: bool = False
    other: int = 64


def classifier(
    features: int,
    necks: Iterable[dict] = (),
    classes: int = 10,
    head: str = 'LinearClsHead',
    pooled: bool = True,
    **backbone: Any,
) -> nn.Module:
    """A backbone with pooling and a linear head, so that its last features can be pruned."""
    neck = [*necks, dict(type='GlobalAveragePooling')] if pooled else [*necks]
    cfg = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=neck or None,
        head=dict(type=head, num_classes=classes, in_channels=features),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'), warnings.catch_warnings():
        # what mmcv says of mmpretrain's VGG and MobileNetV3
        warnings.filterwarnings('ignore', 'Unnecessary conv bias before batch/instance norm')
        warnings.filterwarnings('ignore', 'In MMCV v1.4.4, we modified the default value')
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
# What other blocks do is in two stages; four are those of ResNet-50 and ResNeXt.
TWO_STAGES = dict(depth=50, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
SLIM_DENSENET = dict(growth_rate=16, depths=[2, 3, 3, 2], init_channels=32)


# Of every stage or chain at least one block that may go, and heads and channels enough to choose.
SLIM_SWIN = dict(embed_dims=32, depths=[2, 2], num_heads=[2, 4])
SLIM_POOLFORMER = dict(
    layers=[1, 2, 2, 1],
    embed_dims=[16, 32, 64, 128],
    mlp_ratios=[2] * 4,
    layer_scale_init_value=1.0,
)
SLIM_CONVNEXT = dict(depths=[1, 2, 2, 1], channels=[16, 32, 64, 128])
SLIM_TWINS = dict(
    embed_dims=[32, 64],
    depths=[3, 3],
    num_heads=[2, 4],
    patch_sizes=[4, 2],
    strides=[4, 2],
    mlp_ratios=[2, 2],
    sr_ratios=[2, 1],
)
VIT_OF_THE_PAPER = dict(embed_dims=192, num_layers=9, num_heads=12, feedforward_channels=384)
SLIM_VIT = dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=128)
SWIN_OF_THE_PAPER = dict(embed_dims=96, depths=[2, 6, 4], num_heads=[3, 6, 12])


_of = functools.partial(functools.partial, classifier)
NETWORKS = {
    'resnet18': Network(_of(512, type='ResNet', depth=18)),
    'resnet34': Network(_of(512, type='ResNet', depth=34), slow=True),
    'resnet50': Network(_of(2048, type='ResNet', depth=50)),
    'resnet101': Network(_of(2048, type='ResNet', depth=101), slow=True),
    'resnet152': Network(_of(2048, type='ResNet', depth=152), slow=True),
    'resnet_v1c': Network(_of(512, type='ResNetV1c', depth=18)),
    'resnet_v1d': Network(_of(512, type='ResNetV1d', **TWO_STAGES)),
    'resnet_cifar': Network(_of(2048, type='ResNet_CIFAR', depth=50)),
    'resnext': Network(_of(2048, type='ResNeXt', depth=50, groups=32, width_per_group=4)),
    'seresnet': Network(_of(512, type='SEResNet', **TWO_STAGES)),
    'res2net': Network(_of(512, type='Res2Net', scales=4, base_width=26, **TWO_STAGES)),
    'regnet': Network(_of(384, type='RegNet', arch='regnetx_400mf')),
    'vgg_bn': Network(_of(512, type='VGG', depth=11, norm_cfg=dict(type='BN'))),
    'vgg': Network(_of(512, type='VGG', depth=11)),
    # its first linear layer takes 7 x 7 positions: no other input size will do
    'vgg_with_classifier': Network(
        functools.partial(VGG, 11, num_classes=10), 224, slow=True, other=0
    ),
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


def _vit(arch: dict, patch_size: int) -> Callable[[], nn.Module]:
    return _of(
        arch['embed_dims'],
        head='VisionTransformerClsHead',
        pooled=False,
        type='VisionTransformer',
        arch=arch,
        img_size=32,
        patch_size=patch_size,
        qkv_bias=False,
    )


def _swin(
    arch: dict, size: int, kind: str = 'SwinTransformer', **options: Any
) -> Callable[[], nn.Module]:
    last = len(arch['depths']) - 1
    return _of(
        arch['embed_dims'] * 2**last,
        type=kind,
        arch=arch,
        img_size=size,
        window_size=4,
        out_indices=(last,),
        drop_path_rate=0.0,
        **options,
    )


def _inception() -> nn.Module:
    # whose weights are drawn slowly, with a warning where it is not said whether to
    options = dict(aux_logits=False, transform_input=False, init_weights=False)
    return torchvision.models.Inception3(num_classes=10, **options)


def _xcit() -> Callable[[], nn.Module]:
    sizes = dict(img_size=32, patch_size=8, embed_dims=32, depth=2, cls_attn_layers=2, num_heads=4)
    return _of(32, pooled=False, type='XCiT', **sizes)


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return functools.partial(getattr(torchvision.models, name), num_classes=10, **options)


# Attention, other norms than batch norm, and what a mask of layers' first channels cannot express.
OTHERS = {
    'mobilenet_v3_small': Network(_of(576, type='MobileNetV3', arch='small')),
    'mobilenet_v3_large': Network(_of(960, type='MobileNetV3', arch='large')),
    'efficientnet': Network(_of(1280, type='EfficientNet', arch='b0'), slow=True),
    'shufflenet_v2': Network(_of(1024, type='ShuffleNetV2')),
    'inception_v3': Network(_inception, size=80, slow=True, other=96),
    'csp_resnet': Network(_of(1024, type='CSPResNet', depth=50), slow=True),
    'resnet_gn': Network(
        _of(512, type='ResNet', depth=18, norm_cfg=dict(type='GN', num_groups=32)),
    ),
    'poolformer': Network(_of(128, type='PoolFormer', arch=SLIM_POOLFORMER)),
    'convnext': Network(
        _of(128, pooled=False, type='ConvNeXt', arch=SLIM_CONVNEXT),
    ),
    'convnext_v2': Network(
        _of(
            128,
            pooled=False,
            type='ConvNeXt',
            arch=SLIM_CONVNEXT,
            use_grn=True,
            layer_scale_init_value=0.0,
            linear_pw_conv=False,
        ),
    ),
    'hornet': Network(
        _of(
            256,
            pooled=False,
            type='HorNet',
            arch=dict(
                base_dim=32,
                depths=[1, 2, 2, 1],
                orders=[2, 2, 3, 3],
                dw_cfg=[dict(type='DW', kernel_size=7)] * 4,
            ),
        ),
    ),
    'vit': Network(_vit(SLIM_VIT, patch_size=8)),
    'vit_of_the_paper': Network(_vit(VIT_OF_THE_PAPER, patch_size=4), slow=True),
    'vit_torchvision': Network(
        functools.partial(
            torchvision.models.VisionTransformer, 32, 8, 3, 4, 64, 128, num_classes=10
        ),
        other=0,
    ),
    'xcit': Network(_xcit()),
    'swin': Network(_swin(SLIM_SWIN, 64), size=64, other=96),
    'swin_of_the_paper': Network(
        _swin(
            SWIN_OF_THE_PAPER,
            32,
            stage_cfgs=[
                dict(block_cfgs=dict(ffn_ratio=2)),
                dict(block_cfgs=dict(ffn_ratio=2)),
                dict(block_cfgs=dict(ffn_ratio=2), window_size=2),
            ],
        ),
        slow=True,
        other=0,
    ),
    'swin_v2': Network(
        _swin(dict(SLIM_SWIN, extra_norm_every_n_blocks=0), 64, 'SwinTransformerV2'),
        size=64,
        other=96,
    ),
    'swin_torchvision': Network(
        functools.partial(
            torchvision.models.SwinTransformer,
            [4, 4],
            32,
            [2, 2],
            [2, 4],
            [4, 4],
            2.0,
            stochastic_depth_prob=0.0,
            num_classes=10,
        ),
        size=64,
        other=96,
    ),
    'twins_svt': Network(
        _of(64, type='SVT', arch=dict(SLIM_TWINS, window_sizes=[4, 4]), out_indices=(1,)),
    ),
    'twins_pcpvt': Network(
        _of(64, type='PCPVT', arch=SLIM_TWINS, out_indices=(1,)),
    ),
    'levit': Network(_of(384, type='LeViT', arch='128s', img_size=64), size=64, other=0),
    'efficientformer': Network(
        _of(
            64,
            type='EfficientFormer',
            arch=dict(
                layers=[1, 2, 2, 3],
                embed_dims=[16, 24, 32, 64],
                downsamples=[False, True, True, True],
                vit_num=2,
            ),
            reshape_last_feat=True,
        ),
        size=224,
        other=0,
    ),
    'mlp_mixer': Network(
        _of(
            64,
            [dict(type='GlobalAveragePooling', dim=1)],
            pooled=False,
            type='MlpMixer',
            img_size=32,
            patch_size=8,
            arch=dict(embed_dims=64, num_layers=4, tokens_mlp_dims=32, channels_mlp_dims=128),
        ),
        other=0,
    ),
    'maxvit': Network(
        functools.partial(
            torchvision.models.MaxVit, (64, 64), 16, 4, [16, 32], [2, 2], 8, 0.0, num_classes=10
        ),
        size=64,
        other=0,
    ),
    'regnet_torchvision': Network(_torchvision('regnet_y_400mf'), slow=True),
    'conformer': Network(
        _of(
            [256, 64],
            head='ConformerHead',
            pooled=False,
            type='Conformer',
            arch=dict(embed_dims=64, depths=12, num_heads=4, channel_ratio=1),
            base_channels=64,
        ),
        size=64,
        slow=True,
        other=96,
    ),
}
ALL = NETWORKS | OTHERS


def backbone_config(name: str) -> dict[str, Any] | None:
    """The config of a network's backbone; None where it is not one of mmpretrain's classifiers."""
    build = ALL[name].build
    if not isinstance(build, functools.partial) or build.func is not classifier:
        return None
    return {k: v for k, v in build.keywords.items() if k not in ('necks', 'head', 'pooled')}


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
        pytest.param(name, marks=[pytest.mark.slow] if ALL[name].slow else []) for name in chosen
    ]


def build(name: str) -> nn.Module:
    """A network in eval mode whose every channel matters: same name, same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ALL[name].build()
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
        else:
            _randomize_parameters(module)


def _randomize_parameters(module: nn.Module) -> None:
    """Those of other norms, and what modules hold by themselves: tokens, positions, scales."""
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(module, nn.LayerNorm | nn.GroupNorm) and name == 'weight':
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.dim() == 2:  # matrices of attention, tables of positions
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.normal_(parameter, std=0.5)


def images(name: str, batch: int = 2, seed: int = 0, size: int = 0) -> Tensor:
    """Noise of the size that the network takes, or of another."""
    size = size or ALL[name].size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator)


def tensors(output: Any) -> list[Tensor]:
    """The tensors in whatever a model returns."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def equal(first: Any, second: Any) -> bool:
    """Whether two outputs agree to the bit."""
    first, second = tensors(first), tensors(second)
    return len(first) == len(second) and all(map(torch.equal, first, second))


def assert_within(actual: Tensor, expected: Tensor, share: float, largest: float = 0.0) -> None:
    """Equal but for a share of the largest number, which the order of summation may change.

    ``largest`` is that of what both are worked out of, where it is more than their own.
    """
    scale = max(largest, expected.detach().abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * scale)
