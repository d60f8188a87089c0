"""Which feature maps backbones have: channels and strides, whatever they number them."""

import pytest
import torch
from torch import nn

from mmstp.deploy.feature_maps import FeatureMap, feature_maps, pyramid, with_maps
from mmstp.errors import FeatureError
from mmstp.registry import build_model


def of(kind, **options):
    return with_maps(dict(type=f'mmpretrain.{kind}', **options))


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        (of('ResNet', depth=18), [(64, 4, 0), (128, 8, 1), (256, 16, 2), (512, 32, 3)]),
        # several outputs at one stride: mmdet's users take the last one too
        (of('MobileNetV2'), [(16, 2, 0), (24, 4, 1), (32, 8, 2), (96, 16, 4), (1280, 32, 7)]),
        # a vector without `gap_before_final_norm=False`
        (of('ConvNeXt', arch='atto'), [(40, 4, 0), (80, 8, 1), (160, 16, 2), (320, 32, 3)]),
        # the class token without `out_type='featmap'`
        (
            of('VisionTransformer', img_size=64, patch_size=16,
               arch=dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=64)),
            [(64, 16, 2)],
        ),
        (dict(type='mmstp.WideResNet', depth=10, widen_factor=1),
         [(16, 1, 0), (32, 2, 1), (64, 4, 2)]),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)  # fmt: skip
def test_pyramid(config, expected):
    found = pyramid(config, (3, 64, 64))
    assert [(one.channels, one.stride, one.index) for one in found] == expected


def test_a_backbone_without_indices_has_the_outputs_that_it_has():
    stage = dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,),
                 num_channels=(16,))  # fmt: skip
    two = dict(stage, num_branches=2, block='BASIC', num_blocks=(1, 1), num_channels=(16, 32))
    three = dict(two, num_branches=3, num_blocks=(1,) * 3, num_channels=(16, 32, 64))
    four = dict(two, num_branches=4, num_blocks=(1,) * 4, num_channels=(16, 32, 64, 128))
    config = of('HRNet', extra=dict(stage1=stage, stage2=two, stage3=three, stage4=four))
    assert pyramid(config, (3, 64, 64)) == [
        FeatureMap(16, 4), FeatureMap(32, 8), FeatureMap(64, 16), FeatureMap(128, 32),
    ]  # fmt: skip


def test_modes_stay():
    network = build_model(of('ResNet', depth=18, norm_eval=True))
    network.train()
    modes = [module.training for module in network.modules()]
    feature_maps(network, (3, 64, 64))
    assert [module.training for module in network.modules()] == modes


def test_what_is_no_map_is_refused():
    class Vector(nn.Module):
        def forward(self, x):
            return (x.mean((2, 3)),)

    with pytest.raises(FeatureError, match=r'Vector returns \(1, 3\), where a neck reads maps'):
        feature_maps(Vector(), (3, 8, 8))
    with pytest.raises(FeatureError, match=r'VGG returns \(1, 10\)'):
        pyramid(of('VGG', depth=11, num_classes=10), (3, 224, 224))
    with pytest.raises(FeatureError, match=r'MlpMixer has no output 0'):
        pyramid(of('MlpMixer', arch='base', img_size=32), (3, 32, 32))


def test_strides_are_those_of_the_height():
    class Pool(nn.Module):
        def forward(self, x):
            return [nn.functional.avg_pool2d(x, 4)]

    assert feature_maps(Pool(), (3, 30, 62)) == [FeatureMap(3, 4)]  # 30 / 7 rounds to 4
    assert feature_maps(nn.Conv2d(3, 5, 1), (3, 16, 16)) == [FeatureMap(5, 1)]
    assert torch.is_grad_enabled()
