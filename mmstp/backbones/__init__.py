"""Backbones that mmpretrain does not have."""

from mmstp.backbones.wide_resnet import WideResNet

__all__ = ['WideResNet']
