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

from .analysis.analysis import ChannelGraph
from .analysis.operators.table import register_handler
from .architecture import Architecture
from .backbones.wide_resnet import WideResNet
from .datasets import Digits, TinyImageNet
from .deploy.compact_model import CompactBackbone
from .deploy.dynamic_backbone import CalibrationHook, DynamicBackbone
from .errors import ArchitectureError
from .search.cost import CostModel
from .search.space import SearchSpace
from .stp.algorithm import STP
from .stp.hooks.evaluation import SubnetEvalHook
from .stp.hooks.pool import PoolHook
from .stp.hooks.seeding import EpochSeedHook
from .stp.losses import normalized_kl
from .stp.pool import ArchitecturePool
from .subnets.attention import register_forward
from .subnets.attributes import register_sizes
from .subnets.compact_spec import CompactSpec
from .subnets.norm_statistics import calibrate
from .subnets.supernet import Supernet
from .version import __version__

__all__ = [
    'STP',
    'Architecture',
    'ArchitectureError',
    'ArchitecturePool',
    'CalibrationHook',
    'ChannelGraph',
    'CompactBackbone',
    'CompactSpec',
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
