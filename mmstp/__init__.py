"""Stimulative-training pruning (STP, ECCV 2024): any PyTorch network as its subnets.

What is imported here needs PyTorch and NumPy alone. What needs OpenMMLab's packages (the algorithm
as an MMEngine model, hooks, backbones, datasets) is loaded when it is first used. In a config of
MMEngine types with the scope ``mmstp`` are found by themselves.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .analysis.analysis import ChannelGraph
from .analysis.operators.table import Operator, register_handler
from .architecture import Architecture
from .errors import *  # noqa: F403
from .errors import __all__ as _ERRORS
from .search.budget import Budget
from .search.cost import CostModel
from .search.space import SearchSpace
from .stp.losses import normalized_kl
from .stp.pool import ArchitecturePool
from .subnets.attention import register_forward
from .subnets.attributes import register_sizes
from .subnets.compact_spec import CompactSpec
from .subnets.norm_statistics import calibrate
from .subnets.supernet import Supernet
from .version import __version__

if TYPE_CHECKING:
    from .backbones.wide_resnet import WideResNet
    from .datasets.sklearn_digits import Digits
    from .datasets.tiny_imagenet import TinyImageNet
    from .deploy.compact_model import CompactBackbone, CompactModel, CompactPart
    from .deploy.dynamic_backbone import CalibrationHook, DynamicBackbone
    from .stp.algorithm import STP
    from .stp.hooks.checkpoints import CheckpointHook
    from .stp.hooks.evaluation import SubnetEvalHook
    from .stp.hooks.interruption import InterruptHook
    from .stp.hooks.pool import PoolHook
    from .stp.hooks.seeding import EpochSeedHook

__all__ = [
    # a network and its subnets
    'Architecture',
    'ArchitecturePool',
    'Budget',
    'ChannelGraph',
    'CompactSpec',
    'CostModel',
    'SearchSpace',
    'Supernet',
    'calibrate',
    'normalized_kl',
    # operators and modules of one's own
    'Operator',
    'register_forward',
    'register_handler',
    'register_sizes',
    # with OpenMMLab
    'STP',
    'CalibrationHook',
    'CheckpointHook',
    'CompactBackbone',
    'CompactModel',
    'CompactPart',
    'Digits',
    'DynamicBackbone',
    'EpochSeedHook',
    'InterruptHook',
    'PoolHook',
    'SubnetEvalHook',
    'TinyImageNet',
    'WideResNet',
    '__version__',
    *_ERRORS,
]

_WITH_OPENMMLAB = {
    'STP': 'stp.algorithm',
    'CalibrationHook': 'deploy.dynamic_backbone',
    'CheckpointHook': 'stp.hooks.checkpoints',
    'CompactBackbone': 'deploy.compact_model',
    'CompactModel': 'deploy.compact_model',
    'CompactPart': 'deploy.compact_model',
    'Digits': 'datasets.sklearn_digits',
    'DynamicBackbone': 'deploy.dynamic_backbone',
    'EpochSeedHook': 'stp.hooks.seeding',
    'InterruptHook': 'stp.hooks.interruption',
    'PoolHook': 'stp.hooks.pool',
    'SubnetEvalHook': 'stp.hooks.evaluation',
    'TinyImageNet': 'datasets.tiny_imagenet',
    'WideResNet': 'backbones.wide_resnet',
}
_OPENMMLAB = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet')


def __getattr__(name: str) -> Any:
    if name not in _WITH_OPENMMLAB:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        module = importlib.import_module(f'{__name__}.{_WITH_OPENMMLAB[name]}')
    except ImportError as error:
        if error.name is None or error.name.partition('.')[0] not in _OPENMMLAB:
            raise
        raise ImportError(
            f"mmstp.{name} needs OpenMMLab's packages, and {error.name!r} is missing. Install them "
            "with pip install 'mmstp[onedl]' (maintained distributions) or 'mmstp[openmmlab]' "
            '(the originals)',
            name=error.name,
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if sys.modules.get('mmengine.registry') is not None:
    # as from `custom_imports` of a config: for the name in MMEngine's own registry of functions
    importlib.import_module('mmstp.stp.hooks.seeding')
