"""torchvision's classifiers, its networks for segmentation and the backbones of its detectors."""

from __future__ import annotations

import functools
from typing import Any

import torch
from coverage_network import Network
from torch import Tensor, nn

# Where 64 pixels are too few, or windows and positions want the network's own size.
SIZES = {
    'alexnet': 128, 'inception_v3': 128, 'maxvit_t': 224,
    'swin_t': 224, 'swin_s': 224, 'swin_b': 224,
    'swin_v2_t': 256, 'swin_v2_s': 256, 'swin_v2_b': 256,
    'vit_b_16': 224, 'vit_b_32': 224, 'vit_l_16': 224, 'vit_l_32': 224, 'vit_h_14': 224,
    'ssd300_vgg16.backbone': 300, 'ssdlite320_mobilenet_v3_large.backbone': 128,
}  # fmt: skip

# These two draw their weights slowly, and warn when not told whether to.
_SLOW = ('googlenet', 'inception_v3')
# Detectors whose backbone another has too.
SAME_BACKBONE = {
    'fasterrcnn_mobilenet_v3_large_320_fpn': 'fasterrcnn_mobilenet_v3_large_fpn',
    'keypointrcnn_resnet50_fpn': 'fasterrcnn_resnet50_fpn',
    'maskrcnn_resnet50_fpn': 'fasterrcnn_resnet50_fpn',
    'maskrcnn_resnet50_fpn_v2': 'fasterrcnn_resnet50_fpn_v2',
}
# Backbones of ``torchvision.models.detection.backbone_utils``: the function and its arguments.
_FPN = {
    'resnet18_fpn': ('resnet_fpn_backbone', dict(backbone_name='resnet18')),
    'resnext50_fpn': ('resnet_fpn_backbone', dict(backbone_name='resnext50_32x4d')),
    'mobilenet_v2_fpn': ('mobilenet_backbone', dict(backbone_name='mobilenet_v2', fpn=True)),
    'mobilenet_v3_large_features': (
        'mobilenet_backbone', dict(backbone_name='mobilenet_v3_large', fpn=False)),
}  # fmt: skip


def networks() -> list[Network]:
    """All classifiers; of segmentation whole networks and backbones; of detection backbones."""
    from torchvision import models

    found = [
        _network(getattr(models, name).__module__.rpartition('.')[2], name)
        for name in models.list_models(module=models)
    ]
    for name in models.list_models(module=models.segmentation):
        found += [_network('segmentation', name), _network('segmentation', f'{name}.backbone')]
    for name in models.list_models(module=models.detection):
        same = SAME_BACKBONE.get(name)
        found.append(_network('detection', f'{name}.backbone', same and f'the backbone of {same}'))
    return found + [
        Network('torchvision', 'detection', name, functools.partial(_fpn, *made))
        for name, made in _FPN.items()
    ]


def _network(family: str, name: str, excluded: str | None = None) -> Network:
    return Network('torchvision', family, name, functools.partial(_build, name), excluded or '')


def _build(name: str) -> tuple[nn.Module, Tensor]:
    from torchvision import models

    whole, _, part = name.partition('.')
    options: dict[str, Any] = dict(weights=None)
    if whole in _SLOW:
        options['init_weights'] = False
    if whole not in models.list_models(module=models):
        options['weights_backbone'] = None
    if name.startswith(('fcn', 'deeplabv3')) and not part:
        options['aux_loss'] = True
    model = models.get_model(whole, **options)
    size = SIZES.get(name, 64)
    return model.get_submodule(part), torch.zeros(1, 3, size, size)


def _fpn(function: str, options: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    from torchvision.models.detection import backbone_utils

    model = getattr(backbone_utils, function)(weights=None, **options)
    return model, torch.zeros(1, 3, 64, 64)
