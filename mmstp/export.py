"""Writing a subnet out: weights, a config that builds it, and what it is."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from .algorithm import STP
from .architecture import Architecture
from .compact import CompactPlan
from .hooks import write_json
from .loading import CheckpointError, differences
from .modes import eval_mode
from .registry import MODELS
from .version import __version__

WEIGHTS, CONFIG, DESCRIPTION = 'compact.pth', 'compact.py', 'architecture.json'
CONVENTION = 'multiply-adds of convolutions, linear layers and matrix products, one image'
_OWN_HOOKS = ('mmstp.PoolHook', 'mmstp.SubnetEvalHook')


class ExportError(RuntimeError):
    """A subnet that cannot be described by the dense network's config."""


def compact_classifier(
    classifier: Mapping[str, Any], stp: STP, architecture: Architecture, network: nn.Module
) -> dict[str, Any]:
    """The config of a subnet as a classifier of its own.

    The backbone becomes a `CompactBackbone`. In the neck and the head, ``in_channels`` follow the
    layer that reads the narrower features; where that does not do (a head with hidden layers), the
    part becomes a `CompactPart`.

    Args:
        classifier: The dense classifier's config.
        stp: The algorithm around it.
        architecture: The subnet.
        network: The subnet, cut out; the config has to build one of its shapes.

    Raises:
        ExportError: If the config so changed does not build the subnet.
    """
    plan = stp.supernet.compact_plan(architecture)
    config = copy.deepcopy(dict(classifier))
    backbone = dict(config['backbone'])
    backbone.pop('init_cfg', None)
    config['backbone'] = {
        'type': 'mmstp.CompactBackbone',
        'backbone': backbone,
        'plan': plan.within('backbone').to_dict(),
    }
    config.pop('init_cfg', None)
    for part in ('neck', 'head'):
        own = config.get(part)
        if isinstance(own, dict):
            config[part] = _compact_part(own, plan.within(part), getattr(network, part))
        elif isinstance(own, (list, tuple)):  # built as one part behind the other
            config[part] = [
                _compact_part(one, plan.within(f'{part}.{i}'), getattr(network, part)[i])
                for i, one in enumerate(own)
            ]
    found = differences(build_model(config), network.state_dict())
    if found:
        raise ExportError(
            'the dense config with a compact backbone, neck and head does not build the subnet; '
            'keep what differs whole (space.fix) or describe it by hand:\n  '
            + '\n  '.join(found[:5])
        )
    return config


def _compact_part(
    config: Mapping[str, Any], plan: CompactPlan, network: nn.Module
) -> dict[str, Any]:
    """The config of a neck or head that reads narrower features."""
    readers = [sizes['in_features'] for sizes in plan.sizes.values() if 'in_features' in sizes]
    if not readers and not plan.shapes and not plan.calls:
        return dict(config)
    if len(readers) == 1 and 'in_channels' in config and not plan.calls:
        filled = {**config, 'in_channels': readers[0]}
        if not differences(build_model(filled), network.state_dict()):
            return filled
    return {'type': 'mmstp.CompactPart', 'part': dict(config), 'plan': plan.to_dict()}


def build_model(config: Mapping[str, Any], scope: str = 'mmpretrain') -> nn.Module:
    """Builds a model whose config leaves the scope of its types open, without a runner."""
    with DefaultScope.overwrite_default_scope(scope):
        network: nn.Module = MODELS.build(copy.deepcopy(dict(config)))
    return network


def write_export(
    directory: str | Path, network: nn.Module, config: Config, stp: STP, architecture: Architecture
) -> dict[str, Any]:
    """Writes `WEIGHTS`, `CONFIG` and `DESCRIPTION` into a folder, each whole or not at all.

    Args:
        directory: Made if missing.
        network: The exported subnet, its statistics estimated.
        config: The config of the STP run.
        stp: The algorithm.
        architecture: The subnet's.

    Returns:
        What the description holds.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    description = describe_export(network, stp, architecture)
    weights = {
        'state_dict': {k: v.detach().cpu().clone() for k, v in network.state_dict().items()},
        'meta': {'mmstp_version': __version__, 'architecture': str(architecture)},
    }
    temporary = directory / (WEIGHTS + '.tmp')
    torch.save(weights, temporary)
    os.replace(temporary, directory / WEIGHTS)

    compact_config = copy.deepcopy(config)
    compact_config.model = compact_classifier(
        config.model.model.to_dict(), stp, architecture, network
    )
    compact_config.custom_hooks = [
        hook for hook in config.get('custom_hooks', []) if hook['type'] not in _OWN_HOOKS
    ]
    checkpoint = compact_config.get('default_hooks', {}).get('checkpoint')
    if checkpoint and str(checkpoint.get('save_best', '')).startswith('subnet/'):
        checkpoint.save_best = checkpoint.save_best.removeprefix('subnet/')
    compact_config.load_from = None
    compact_config.resume = False
    compact_config.pop('work_dir', None)
    temporary = directory / (CONFIG + '.tmp')
    temporary.write_text(compact_config.pretty_text)
    os.replace(temporary, directory / CONFIG)

    write_json(directory / DESCRIPTION, description)
    return description


def describe_export(network: nn.Module, stp: STP, architecture: Architecture) -> dict[str, Any]:
    """What an export is: costs, their convention, and the channels of every layer."""
    cost = stp.supernet.cost
    pair = [architecture, stp.supernet.space.largest]
    macs, params = cost.macs(pair), cost.params(pair)
    return {
        'architecture': str(architecture),
        'stages': [stage.name for stage in stp.supernet.space.stages],
        'macs': int(macs[0]),
        'macs_dense': int(macs[1]),
        'macs_ratio': float(macs[0] / macs[1]),
        'macs_convention': CONVENTION,
        'params': int(params[0]),
        'params_dense': int(params[1]),
        'params_ratio': float(params[0] / params[1]),
        'input_shape': list(stp.supernet.inputs[0].shape[1:]),
        'layers': {
            key.removesuffix('.weight'): list(tensor.shape)
            for key, tensor in network.named_parameters()
            if key.endswith('.weight') and tensor.dim() > 1
        },
        'mmstp_version': __version__,
    }


def reload(directory: str | Path) -> nn.Module:
    """The network of an export, from its config and weights alone.

    Raises:
        CheckpointError: If the weights do not fit the config.
    """
    directory = Path(directory)
    config = Config.fromfile(directory / CONFIG)
    model = config.model.to_dict()
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    network = build_model(model, config.get('default_scope', 'mmpretrain'))
    weights = torch.load(directory / WEIGHTS, map_location='cpu', weights_only=True)
    if found := differences(network, weights['state_dict']):
        raise CheckpointError(f'{directory / WEIGHTS} does not fit its config:\n  {found[0]}')
    # not strict: SwinV2 takes keys away that it works out itself
    network.load_state_dict(weights['state_dict'], strict=False)
    return network


@torch.no_grad()
def max_abs_difference(first: nn.Module, second: nn.Module, shape: Sequence[int]) -> float:
    """The largest difference between two networks' outputs in eval mode, on random inputs."""
    images = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    outputs = []
    for network in (first, second):
        with eval_mode(network):
            outputs.append(network(images.to(next(network.parameters()).device)).cpu())
    return float((outputs[0] - outputs[1]).abs().max())
