"""Backbones that mmpretrain and mmdet build from configs."""

from .compact import CompactBackbone, CompactPart
from .wide_resnet import WideResNet

__all__ = ['CompactBackbone', 'CompactPart', 'WideResNet']
