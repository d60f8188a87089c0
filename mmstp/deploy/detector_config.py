"""Detectors around a compact backbone: the config of a dense one, changed where it has to be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger

from ..atomic_files import write_text
from ..config_fields import constructor_options, default_of
from ..errors import DetectorError, ExportError
from ..registry import build_model
from .detector_check import SCOPE, SIZE, try_detector
from .export import BACKBONE, comment, read_config, read_description
from .feature_maps import FeatureMap, feature_maps

UNTRIED = 'was not tried: the dense detector does not run here either.'
_REPLACED = {'type', 'init_cfg', 'pretrained', 'out_indices', '_scope_'}
_BATCH_NORMS = {'BN', 'BN2d', 'SyncBN', 'MMSyncBN'}


def write_detector(directory: str | Path, detector: str) -> Path:
    """Writes a config into the folder of an export: a detector with its backbone replaced.

    It inherits the detector's config and `BACKBONE`. The neck's ``in_channels`` (without a neck,
    the heads') follow the compact backbone, images are normalised as the classifier's were, and
    the weights are named. The detector is then built from it, loaded and run once.

    Args:
        directory: Of the export.
        detector: A config file (a pure-Python one is dumped into the folder first, as
            ``dense_<name>.py``), or one of an installed package: ``'mmdet::mask_rcnn/….py'``.

    Returns:
        The path of the config, ``compact_<name>.py``.

    Raises:
        DetectorError: If its backbone cannot be replaced; the message says why.
        CheckpointError: If the weights of the export are not its backbone's.
    """
    directory = Path(directory)
    _check_export(directory)
    export = read_config(directory, BACKBONE)
    config = load_detector(detector)
    _refuse_classifier(config, detector)
    stem = Path(detector.partition('::')[2] or detector).stem
    if not isinstance(config.get('model', {}).get('type', ''), str):
        # a pure-Python config, which no config of the other kind can inherit
        dumped = directory / f'dense_{stem}.py'
        config.dump(dumped)
        detector, config = str(dumped), load_detector(str(dumped))
    where, parts = _part_with_backbone(config)
    backbone = Config(parts['backbone']).to_dict()
    dense = _dense_maps(backbone, config.get('default_scope', SCOPE))
    indices, channels = _outputs_at([one.stride for one in dense], export)
    options = _carried(backbone, export.compact_backbone.backbone)
    if indices is not None:
        options['out_indices'] = indices
    fields = ', '.join(f'{key}={value!r}' for key, value in options.items())
    pairs = [(one.channels, own) for one, own in zip(dense, channels, strict=True)]
    readers = _readers(parts, pairs)
    # there are detectors with a preprocessor for each of their parts, inside another one
    name = 'data_preprocessor'
    edits = {
        **{
            (*path, name): '_base_.compact_preprocessor'
            for path, own in _with(name, config.model)
            if name not in own[name]
        },
        (*where, 'backbone'): f'dict(_delete_=True, **_base_.compact_backbone, {fields})',
        **{(*where, part): code for part, code in readers.items()},
    }
    base = detector if '::' in detector else os.path.relpath(detector, directory)
    modules = dict.fromkeys([*config.get('custom_imports', {}).get('imports', []), 'mmstp'])
    if '{{' in base:
        raise DetectorError(
            f'--detector {detector!r}: MMEngine would replace what follows {"{{"!r} in its path; '
            'give it another name'
        )
    text = f"""# {comment(base)}
# with the compact backbone of {BACKBONE} in this folder; written by tools/export.py --detector.
_base_ = [{base!r}, './{BACKBONE}']

custom_imports = dict(imports={[*modules]!r}, allow_failed_imports=False)
load_from = None

model = {_code(edits)}
"""
    path = directory / f'compact_{stem}.py'
    temporary = path.with_name(f'untried_{path.name}')
    try:
        write_text(temporary, text)
        untried = try_detector(Config.fromfile(temporary), config, directory)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    logger = MMLogger.get_current_instance()
    if untried is not None:
        logger.warning(f'{path} {UNTRIED} {untried}')
    filled = '; '.join(f'{part}={code}' for part, code in readers.items())
    logger.info(f'{path}: {detector} with the compact backbone; {filled}')
    return path


def load_detector(detector: str) -> Config:
    """The config of a detector, from a file or an installed package; else a `DetectorError`."""
    try:
        if '::' in detector:
            return Config.fromstring(f'_base_ = {detector!r}', '.py')
        return Config.fromfile(detector)
    except Exception as error:
        raise DetectorError(
            f'--detector {detector!r} cannot be read: {error}. Expected a config file, or a name '
            "such as 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'"
        ) from error


def _check_export(directory: Path) -> None:
    try:
        description = read_description(directory)
    except ExportError as error:
        raise DetectorError(str(error)) from error
    refused = f'{directory}: this network is no backbone for a detector'
    if description['backbone'] != BACKBONE:
        raise DetectorError(f'{refused} ({description["backbone"]})')
    if description['one_size']:
        raise DetectorError(f'{refused}, whose images have many sizes: {description["one_size"]}')


def _name(kind: Any) -> str:
    """A config's ``type`` as text; pure-Python configs have classes."""
    return kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__name__}'


def _refuse_classifier(config: Config, detector: str) -> None:
    name = _name(config.get('model', {}).get('type', ''))
    scope = name.partition('.')[0] if '.' in name else config.get('default_scope')
    if scope in ('mmpretrain', 'mmstp') or 'Classifier' in name:
        raise DetectorError(
            f'--detector {detector!r} is the config of a classifier (model.type is {name!r}); '
            "expected that of a detector, such as 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'"
        )


def _part_with_backbone(config: Config) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The part of ``model`` that has the backbone, with its path."""
    found = [
        (path, part)
        for path, part in _with('backbone', config.get('model', {}))
        if 'type' in part['backbone'] and 'backbone' not in path
    ]
    if len(found) != 1:
        places = ', '.join('.'.join(('model', *path, 'backbone')) for path, _ in found)
        raise DetectorError(
            f'the detector has {len(found)} backbones{f" ({places})" if places else ""}: one is '
            f'what can be replaced. model has the fields {sorted(config.get("model", {}))}'
        )
    return found[0]


def _with(
    name: str, model: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The parts of a model that have a part of this name, each with its path."""
    if isinstance(model.get(name), Mapping):
        yield path, model
    for key, value in model.items():
        if isinstance(value, Mapping):
            yield from _with(name, value, (*path, key))


def _dense_maps(backbone: Mapping[str, Any], scope: str) -> list[FeatureMap]:
    config = {k: v for k, v in backbone.items() if k not in ('init_cfg', 'pretrained')}
    try:
        return feature_maps(build_model(config, scope), (3, *SIZE))
    except Exception as error:  # whatever a class says of its options, or of images of this size
        raise DetectorError(
            f"the detector's own backbone ({backbone['type']}) cannot be looked at: "
            f'{type(error).__name__}: {error}'
        ) from error


def _outputs_at(strides: Sequence[int], export: Config) -> tuple[tuple[int, ...] | None, list[int]]:
    """Indices and channels of the compact backbone's outputs at these strides."""
    own = list(export.compact_strides)
    if not set(strides) <= set(own) or len(set(strides)) < len(strides):
        raise DetectorError(
            f"the detector's backbone has outputs at strides {tuple(strides)}, the compact one at "
            f'{tuple(own)}: anchors and regions of interest would lie elsewhere'
        )
    places = [own.index(stride) for stride in strides]
    channels = [export.compact_channels[place] for place in places]
    indices = export.compact_backbone.backbone.get('out_indices')
    if indices is not None:
        return tuple(indices[place] for place in places), channels
    if places != list(range(len(own))):
        raise DetectorError(
            f'the compact backbone has no out_indices: it returns maps at strides {tuple(own)}, '
            f'the detector reads those at {tuple(strides)}'
        )
    return None, channels


def _carried(backbone: Mapping[str, Any], compact: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the dense backbone that say how it is trained; others describe that network."""
    cls = type(build_model(compact))
    # every compact backbone has norm_eval
    accepted = ['norm_eval', *(constructor_options(cls) & {'with_cp'})]
    carried = {key: backbone[key] for key in accepted if key in backbone}
    own, norm = compact.get('norm_cfg', default_of(cls, 'norm_cfg')), backbone.get('norm_cfg')
    if own and norm and {own['type'], norm['type']} <= _BATCH_NORMS:
        # not eps and momentum, which are the compact network's
        kept = {key: norm[key] for key in ('type', 'requires_grad') if key in norm}
        carried['norm_cfg'] = {**own, **kept}
    kind = _name(backbone['type']).rpartition('.')[2]
    if 'frozen_stages' in backbone and kind in [base.__name__ for base in cls.__mro__]:
        carried['frozen_stages'] = backbone['frozen_stages']
    if left := sorted(set(backbone) - set(carried) - _REPLACED):
        MMLogger.get_current_instance().info(
            f"options of the detector's own backbone that are left out: {', '.join(left)}"
        )
    return carried


def _readers(parts: Mapping[str, Any], channels: Sequence[tuple[int, int]]) -> dict[str, str]:
    """By part of the detector that reads the backbone's outputs, what the config says of it.

    ``channels`` are those of each output, of the dense backbone and of the compact one.
    """
    neck = parts.get('neck')
    if isinstance(neck, (list, tuple)):  # a list is replaced as a whole
        first = {**neck[0], 'in_channels': _filled('neck.0', neck[0], channels)}
        return {'neck': repr([Config(one).to_dict() for one in (first, *neck[1:])])}
    readers = ['neck'] if isinstance(neck, Mapping) else [
        name for name, part in parts.items() if isinstance(part, Mapping) and 'in_channels' in part
    ]  # fmt: skip
    if not readers:
        raise DetectorError(
            'the detector has no neck, and none of its heads has in_channels: what reads the '
            f'backbone is not known; model has the fields {sorted(parts)}'
        )
    return {name: f'dict(in_channels={_filled(name, parts[name], channels)})' for name in readers}


def _filled(name: str, part: Mapping[str, Any], channels: Sequence[tuple[int, int]]) -> Any:
    """A part's ``in_channels``: the compact ones at the places that they have in the dense ones."""
    own: Any = part.get('in_channels')
    dense = [before for before, _ in channels]
    if own in dense:  # the coarsest of those that have as many
        return dict(channels)[own]
    for step in (1, -1) if isinstance(own, (list, tuple)) else ():
        for start in range(len(channels) - len(own) + 1):
            chosen = channels[::step][start : start + len(own)]
            if [before for before, _ in chosen] == list(own):
                return [after for _, after in chosen]
    raise DetectorError(
        f'model.{name}.in_channels = {own!r} ({part.get("type")}) cannot be filled in: it is '
        f"made of none of the channels of the detector's own backbone, {dense}"
    )


def _code(edits: Mapping[tuple[str, ...], str], indent: str = '') -> str:
    """A dict of these edits, by path, as a config says it."""
    if () in edits:
        return edits[()]
    inner = indent + '    '
    lines = []
    for key in dict.fromkeys(path[0] for path in edits):
        below = {path[1:]: code for path, code in edits.items() if path[0] == key}
        lines.append(f'{inner}{key}={_code(below, inner)},')
    return '\n'.join(['dict(', *lines, f'{indent})'])
