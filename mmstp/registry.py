"""Registries with the scope ``mmstp``: children of MMEngine's roots.

MMEngine imports this module when it meets ``type='mmstp.X'`` in a config of any default scope, and
then imports the locations, which register their classes. An import that fails there is raised as it
is, so it names the module that is missing.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

__all__ = ['DATASETS', 'HOOKS', 'MODELS']

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmstp',
    locations=['mmstp.algorithm', 'mmstp.backbones'],
)
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmstp',
    locations=['mmstp.datasets'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmstp',
    locations=['mmstp.hooks'],
)
