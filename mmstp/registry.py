"""Registries with the scope ``mmstp``: children of MMEngine's roots.

MMEngine imports this module when it meets ``type='mmstp.X'`` in a config of any default scope, and
then imports the locations, which register their classes. An import that fails there is raised as it
is, so it names the module that is missing.
"""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine import registry as mmengine
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope, Registry
from torch import nn

__all__ = ['DATASETS', 'FUNCTIONS', 'HOOKS', 'MODELS', 'TASKS', 'build_model', 'scoped', 'type_of']


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='mmstp', locations=list(locations))


MODELS = _child(
    mmengine.MODELS,
    'mmstp.stp.algorithm',
    'mmstp.deploy.compact_model',
    'mmstp.deploy.dynamic_backbone',
    'mmstp.backbones.wide_resnet',
)
DATASETS = _child(mmengine.DATASETS, 'mmstp.datasets')
HOOKS = _child(
    mmengine.HOOKS,
    'mmstp.stp.hooks.pool',
    'mmstp.stp.hooks.evaluation',
    'mmstp.stp.hooks.seeding',
    'mmstp.stp.hooks.checkpoints',
    'mmstp.stp.hooks.interruption',
    'mmstp.deploy.dynamic_backbone',
)
FUNCTIONS = _child(mmengine.FUNCTIONS, 'mmstp.stp.hooks.seeding')
TASKS = _child(mmengine.TASK_UTILS, 'mmstp.stp.tasks', 'mmstp.stp.detection')


def build_model(config: Mapping[str, Any], scope: str | None = None) -> nn.Module:
    """Builds a model or a part of one, outside a runner too; the config is left as it is.

    Where its type names its scope (``'mmpretrain.ResNet'``), types inside it are looked up there as
    well, whatever the run's scope is. (What this project's types hold is another's: their scope
    stays the run's.) ``scope`` is that where neither the config nor the run has one.
    """
    kind, config = config['type'], ConfigDict(copy.deepcopy(dict(config)))  # as from a file
    if isinstance(kind, str) and '.' in kind and not kind.startswith('mmstp.'):
        scope = kind.partition('.')[0]
    with DefaultScope.overwrite_default_scope(scope):
        network: nn.Module = MODELS.build(config)
    return network


def type_of(kind: Any, registry: Registry) -> Any:
    """The class or function that a config's ``type`` means, in every form that MMEngine builds.

    Those are a name, a full path (as dumped configs have it), and the thing itself (as pure-Python
    configs have it). None where a registry knows no such name.
    """
    return registry.get(kind) if isinstance(kind, str) else kind


def scoped(config: Mapping[str, Any], scope: str) -> dict[str, Any]:
    """A config whose type names its scope, so that it is the same class in every run."""
    kind = config['type']
    if isinstance(kind, str) and '.' not in kind:
        return {**config, 'type': f'{scope}.{kind}'}
    return dict(config)
