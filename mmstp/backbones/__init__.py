"""Backbones that mmpretrain and mmdet build from configs."""

from .compact import CompactBackbone
from .wide_resnet import WideResNet

__all__ = ['CompactBackbone', 'WideResNet']
