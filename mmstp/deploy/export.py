"""Writing a subnet out: weights, a config that builds it, and what it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..architecture import Architecture
from ..atomic_files import whole_file, write_json, write_text
from ..checkpoints import differences, load_pretrained
from ..errors import CheckpointError, ExportError, FeatureError
from ..registry import build_model, scoped
from ..stp.algorithm import STP
from ..subnets.compact_spec import CompactPlan
from ..subnets.supernet import Supernet
from ..version import __version__
from .feature_maps import feature_maps, pyramid, with_maps

WEIGHTS, CONFIG, BACKBONE = 'compact.pth', 'compact.py', 'backbone.py'


DESCRIPTION = 'architecture.json'


CONVENTION = 'multiply-adds of convolutions, linear layers and matrix products, one image'


SCOPE = 'mmpretrain'  # of types without one, in configs of classifiers


_OWN_HOOKS = ('mmstp.PoolHook', 'mmstp.SubnetEvalHook')


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
        'backbone': scoped(backbone, SCOPE),
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
    found = differences(build_model(config, SCOPE), network.state_dict())
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
        if not differences(build_model(filled, SCOPE), network.state_dict()):
            return filled
    return {'type': 'mmstp.CompactPart', 'part': dict(config), 'plan': plan.to_dict()}


def write_export(
    directory: str | Path, network: nn.Module, config: Config, stp: STP, architecture: Architecture
) -> dict[str, Any]:
    """Writes `WEIGHTS`, `CONFIG`, `BACKBONE` and `DESCRIPTION`, each whole or not at all.

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
    with whole_file(directory / WEIGHTS) as file:
        torch.save(weights, file)

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
    write_text(directory / CONFIG, compact_config.pretty_text)

    try:
        backbone = compact_backbone(compact_config, config, stp, architecture)
    except FeatureError as error:  # as that of a classifier which is no backbone for a detector
        (directory / BACKBONE).unlink(missing_ok=True)
        description['backbone'] = f'none: {error}'
    else:
        write_text(directory / BACKBONE, Config(backbone).pretty_text)
        description['backbone'] = BACKBONE
    write_json(directory / DESCRIPTION, description)
    return description


def compact_backbone(
    compact_config: Config, config: Config, stp: STP, architecture: Architecture
) -> dict[str, Any]:
    """What configs of detectors take from an export: a backbone that returns feature maps.

    Args:
        compact_config: The compact classifier's config.
        config: The config of the STP run.
        stp: The algorithm.
        architecture: The subnet's.

    Returns:
        ``compact_backbone``, its config, with an output at each stride; ``compact_channels`` and
        ``compact_strides`` of these outputs; ``compact_preprocessor``, the classifier's
        normalisation as a detector's data preprocessor takes it.

    Raises:
        FeatureError: If the backbone returns no feature maps.
        ExportError: If the backbone with these outputs is not the classifier's.
    """
    own = compact_config.model.backbone.to_dict()
    shape = tuple(stp.supernet.inputs[0].shape[1:])
    dense = with_maps(own['backbone'])
    maps = pyramid(dense, shape)
    if maps[0].index is not None:
        dense['out_indices'] = tuple(one.index for one in maps)
    before, network = build_model(own['backbone']), build_model(dense)
    known = dict(before.named_modules())
    fresh = [
        path
        for path, module in network.named_modules()
        if path not in known and module.state_dict() and not list(module.children())
    ]
    plan = CompactPlan.from_dict(own['plan'])
    if fresh:
        space = dict(config.model.get('space', {}))
        plan = _plan_with(network, shape, space, stp, architecture, plan)
    backbone = dict(type='mmstp.CompactBackbone', backbone=dense, plan=plan.to_dict())
    if fresh:
        backbone['fresh'] = fresh
    normalise = config.model.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    return {
        'compact_backbone': {
            **backbone,
            'init_cfg': dict(
                type='Pretrained', checkpoint='{{ fileDirname }}/' + WEIGHTS, prefix='backbone.'
            ),
        },
        'compact_channels': [one.channels for one in feature_maps(build_model(backbone), shape)],
        'compact_strides': [one.stride for one in maps],
        'compact_preprocessor': {
            'mean': normalise.get('mean'),
            'std': normalise.get('std'),
            'bgr_to_rgb': bool(normalise.get('to_rgb', False)),
        },
    }


class _Holder(nn.Module):
    """A backbone at the path that it has in a classifier."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Any:
        return self.backbone(images)


def _plan_with(
    network: nn.Module,
    shape: Sequence[int],
    space: Mapping[str, Any],
    stp: STP,
    architecture: Architecture,
    plan: CompactPlan,
) -> CompactPlan:
    """The plan of a backbone that has layers which the classifier's, whose plan it is, has not."""
    holder = _Holder(network)
    with eval_mode(holder):
        supernet = Supernet(holder, torch.zeros(1, *shape), fix_outputs=False, **space)
    chosen = {
        stage.name: (depth, width)
        for stage, depth, width in zip(
            stp.supernet.space.stages, architecture.depths, architecture.widths, strict=True
        )
    }
    choices = [
        chosen.get(stage.name, (stage.depths[-1], stage.widths[-1]))
        for stage in supernet.space.stages
    ]
    depths, widths = zip(*choices, strict=True)
    found = supernet.compact_plan(Architecture(depths, widths)).within('backbone')
    for key, size in plan.shapes.items():
        if found.shapes.get(key, size) != size:
            raise ExportError(
                f'with all its outputs the backbone would be another: {key} would have shape '
                f'{found.shapes[key]}, not {size}'
            )
    return found


def describe_export(network: nn.Module, stp: STP, architecture: Architecture) -> dict[str, Any]:
    """What an export is: costs, their convention, and the channels of every layer."""
    return {
        **stp.supernet.describe(architecture),
        'stages': [stage.name for stage in stp.supernet.space.stages],
        'macs_convention': CONVENTION,
        'input_shape': list(stp.supernet.inputs[0].shape[1:]),
        'one_size': stp.supernet.one_size,
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
    network = build_model(model, config.get('default_scope', SCOPE))
    weights = torch.load(directory / WEIGHTS, map_location='cpu', weights_only=True)
    if found := differences(network, weights['state_dict']):
        raise CheckpointError(f'{directory / WEIGHTS} does not fit its config:\n  {found[0]}')
    # not strict: SwinV2 takes keys away that it works out itself
    network.load_state_dict(weights['state_dict'], strict=False)
    return network


def load_backbone(directory: str | Path) -> nn.Module:
    """The backbone of an export as detectors have it, with its weights.

    Raises:
        CheckpointError: If the weights do not fit.
    """
    network = build_model(Config.fromfile(Path(directory) / BACKBONE).compact_backbone)
    load_pretrained(network)
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
