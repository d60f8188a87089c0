"""Stimulative-training pruning (STP, ECCV 2024) for MMEngine models."""

try:
    import mmengine  # noqa: F401
    import mmpretrain  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"mmstp needs OpenMMLab's mmengine, mmcv and mmpretrain, and {error.name!r} is missing. "
        "Install them with pip install 'mmstp[onedl]' (maintained distributions) or "
        "'mmstp[openmmlab]' (the originals)"
    ) from error

from .algorithm import STP
from .architecture import Architecture, ArchitectureError
from .backbones import CompactBackbone, DynamicBackbone, WideResNet
from .calibration import calibrate
from .compact import CompactPlan
from .cost import CostModel
from .datasets import Digits, TinyImageNet
from .dynamic import register_forward, register_sizes
from .graph import ChannelGraph, register_handler
from .hooks import CalibrationHook, EpochSeedHook, PoolHook, SubnetEvalHook
from .losses import normalized_kl
from .pool import ArchitecturePool
from .space import SearchSpace
from .supernet import Supernet
from .version import __version__

__all__ = [
    'STP',
    'Architecture',
    'ArchitectureError',
    'ArchitecturePool',
    'CalibrationHook',
    'ChannelGraph',
    'CompactBackbone',
    'CompactPlan',
    'CostModel',
    'Digits',
    'DynamicBackbone',
    'EpochSeedHook',
    'PoolHook',
    'SearchSpace',
    'SubnetEvalHook',
    'Supernet',
    'TinyImageNet',
    'WideResNet',
    '__version__',
    'calibrate',
    'normalized_kl',
    'register_forward',
    'register_handler',
    'register_sizes',
]
