"""The configs that an export holds: the dense network's, changed where it has to be."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import nn

from ..analysis.eval_state import eval_mode
from ..architecture import Architecture
from ..checkpoints import differences
from ..errors import ExportError
from ..registry import build_model, scoped
from ..stp.algorithm import STP
from ..subnets.compact_spec import CompactSpec
from ..subnets.supernet import Supernet
from .feature_maps import feature_maps, pyramid, with_maps
from .plan_file import PLAN

WEIGHTS = 'compact.pth'
HERE = '{{ fileDirname }}/'  # the folder of a config, as MMEngine writes it
SCOPE = 'mmpretrain'  # of types without one, in configs of classifiers


def compact_model(
    model: Mapping[str, Any], spec: CompactSpec, network: nn.Module, scope: str
) -> tuple[dict[str, Any], dict[str, CompactSpec]]:
    """The config of a subnet as a model of its own, and the parts of its plan.

    The backbone becomes a `CompactBackbone`. In the other parts, ``in_channels`` follow the layer
    that reads the narrower features; where that does not do (a neck, a head with hidden layers),
    the part becomes a `CompactPart`. Where more is narrower, in parts that the model builds itself
    (a transformer's), the whole is a `CompactModel`.

    Args:
        model: The dense model's config.
        spec: The subnet's.
        network: The subnet.
        scope: Of types without one.
    """
    config = copy.deepcopy(dict(model))
    for own in (config, config['backbone']):
        own.pop('init_cfg', None)
    backbone = scoped(config['backbone'], scope)
    config['backbone'] = dict(type='mmstp.CompactBackbone', backbone=backbone, plan=HERE + PLAN)
    parts, described = {'backbone': spec.within('backbone')}, ['backbone']

    def compact_part(name: str, own: dict[str, Any]) -> dict[str, Any]:
        inside = spec.within(name)
        if 'type' not in own or not (inside.shapes or inside.calls):
            return own
        described.append(name)
        if filled := _with_in_channels(own, inside, network.get_submodule(name), scope):
            return filled
        parts[name] = inside
        dense = scoped(own, scope)
        return dict(type='mmstp.CompactPart', part=dense, plan=HERE + PLAN, plan_part=name)

    for part, _ in network.named_children():
        own = config.get(part)
        if part == 'backbone':
            continue
        if isinstance(own, dict):
            config[part] = compact_part(part, own)
        elif isinstance(own, (list, tuple)):  # built as one part behind the other
            config[part] = [compact_part(f'{part}.{i}', one) for i, one in enumerate(own)]
    rest = spec.outside(described)
    if rest.shapes or rest.calls or rest.skipped:
        parts['model'] = rest
        dense = scoped(config, scope)['type']
        config.update(type='mmstp.CompactModel', dense=dense, plan=HERE + PLAN, plan_part='model')
    return config, parts


def _with_in_channels(
    config: Mapping[str, Any], spec: CompactSpec, network: nn.Module, scope: str
) -> dict[str, Any] | None:
    """The config of a neck or head, where nothing but the features that it reads is narrower."""
    readers = [
        module.in_features
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and f'{path}.weight' in spec.shapes
    ]
    if len(readers) != 1 or 'in_channels' not in config or spec.calls:
        return None
    filled = {**config, 'in_channels': readers[0]}
    return None if differences(build_model(filled, scope), network.state_dict()) else filled


def compact_backbone(
    compact_config: Config,
    config: Config,
    stp: STP,
    architecture: Architecture,
    parts: dict[str, CompactSpec],
) -> dict[str, Any]:
    """What configs of detectors take from an export: a backbone that returns feature maps.

    Where it has layers that the classifier's has not (norms of further outputs), ``parts`` of the
    plan get one more, ``'feature_maps'``.

    Returns:
        ``compact_backbone``, its config, with an output at each stride; ``compact_channels`` and
        ``compact_strides`` of these outputs; ``compact_preprocessor``, the classifier's
        normalisation as a detector's data preprocessor takes it.

    Raises:
        FeatureError: If the backbone returns no feature maps.
        ExportError: If the backbone with these outputs is not the classifier's.
    """
    own = compact_config.model.backbone.backbone.to_dict()
    shape = tuple(stp.supernet.inputs[0].shape[1:])
    dense = with_maps(own)
    maps = pyramid(dense, shape)
    if maps[0].index is not None:
        dense['out_indices'] = tuple(one.index for one in maps)
    backbone = dict(type='mmstp.CompactBackbone', backbone=dense, plan=HERE + PLAN)
    known, network = dict(build_model(own).named_modules()), build_model(dense)
    fresh = [
        path
        for path, module in network.named_modules()
        if path not in known and module.state_dict() and not list(module.children())
    ]
    if fresh:
        space = config.model.get('space', {})
        parts['feature_maps'] = _with_layers(network, space, stp, architecture, parts['backbone'])
        backbone.update(plan_part='feature_maps', fresh=fresh)
    built = build_model(inline(backbone, parts))
    init_cfg = dict(type='Pretrained', checkpoint=HERE + WEIGHTS, prefix='backbone.')
    normalise = config.model.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    return {
        'compact_backbone': {**backbone, 'init_cfg': init_cfg},
        'compact_channels': [one.channels for one in feature_maps(built, shape)],
        'compact_strides': [one.stride for one in maps],
        'compact_preprocessor': {
            'mean': normalise.get('mean'),
            'std': normalise.get('std'),
            'bgr_to_rgb': bool(normalise.get('to_rgb', False)),
        },
    }


def _with_layers(
    network: nn.Module, space: Mapping[str, Any], stp: STP, architecture: Architecture,
    plan: CompactSpec,
) -> CompactSpec:  # fmt: skip
    """The plan of a backbone that has layers beside those of the classifier's, ``plan``."""
    # at the path that it has in the classifier, by which stages and layers are named
    model = nn.Sequential(OrderedDict(backbone=network))
    with eval_mode(model):
        supernet = Supernet(model, stp.supernet.inputs, fix_outputs=False, **space)
    names = [stage.name for stage in stp.supernet.space.stages]
    pairs = zip(architecture.depths, architecture.widths, strict=True)
    chosen = dict(zip(names, pairs, strict=True))
    choices = [chosen.get(s.name, (s.depths[-1], s.widths[-1])) for s in supernet.space.stages]
    found = supernet.compact_spec(Architecture(*zip(*choices, strict=True))).within('backbone')
    for key, size in plan.shapes.items():
        if found.shapes.get(key, size) != size:
            raise ExportError(
                f'with all its outputs the backbone would be another: {key} would have shape '
                f'{found.shapes[key]}, not {size}'
            )
    return found


def inline(config: Any, parts: Mapping[str, CompactSpec]) -> Any:
    """A config with the parts of the plan in place of the file that is to hold them."""
    if isinstance(config, (list, tuple)):
        return [inline(one, parts) for one in config]
    if not isinstance(config, Mapping):
        return config
    found = {key: inline(value, parts) for key, value in config.items()}
    if found.get('plan') == HERE + PLAN:
        found['plan'] = parts[found.get('plan_part', 'backbone')].to_dict()
    return found
