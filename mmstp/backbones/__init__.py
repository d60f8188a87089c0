"""Backbones that mmpretrain and mmdet build from configs."""

from .compact import CompactBackbone, CompactPart
from .dynamic import DynamicBackbone, DynamicBackboneMixin, StatisticsError
from .wide_resnet import WideResNet

__all__ = [
    'CompactBackbone',
    'CompactPart',
    'DynamicBackbone',
    'DynamicBackboneMixin',
    'StatisticsError',
    'WideResNet',
]
