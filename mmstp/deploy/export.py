"""Writing a subnet out: weights, a config that builds it, and what it is."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import initialize
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..architecture import Architecture
from ..atomic_files import whole_file, write_json, write_text
from ..checkpoints import differences, plain_loading, read_checkpoint, refuse_not_finite, weights_of
from ..errors import CheckpointError, ExportError, FeatureError
from ..foreign import pytree
from ..registry import HOOKS, build_model, type_of
from ..stp.algorithm import STP
from ..stp.hooks.evaluation import SubnetEvalHook
from ..stp.hooks.pool import PoolHook
from ..version import __version__
from .compact_config import SCOPE, WEIGHTS, compact_backbone, compact_model, inline
from .plan_file import PLAN, write_plan

CONFIG, BACKBONE = 'compact.py', 'backbone.py'
DESCRIPTION = 'architecture.json'
CONVENTION = 'multiply-adds of convolutions, linear layers and matrix products, one image'
_OWN_HOOKS = (PoolHook, SubnetEvalHook)
# What would not stay as it is where MMEngine pastes a folder's path between quotes.
_NOT_IN_PATHS = ("'", '\\', '{{', '\n', '\r')


def write_export(
    directory: str | Path,
    network: nn.Module,
    config: Config,
    stp: STP,
    architecture: Architecture,
    source: str | None = None,
    dataset_meta: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `WEIGHTS`, `PLAN`, `CONFIG`, `BACKBONE` and `DESCRIPTION`, each whole or not at all.

    Args:
        directory: Made if missing.
        network: The exported subnet, its statistics estimated.
        config: The config of the STP run.
        stp: The algorithm.
        architecture: The subnet's.
        source: The checkpoint it comes from, for the heads of the configs.
        dataset_meta: Of the run's data: ``classes``, by whose names inferencers of OpenMMLab call
            what they find.

    Returns:
        What the description holds.

    Raises:
        ExportError: If the dense network's config, so changed, does not build the subnet, or
            configs cannot lie in the folder (`check_folder`).
        CheckpointError: If the network's weights are not finite.
    """
    check_folder(directory)
    directory = Path(directory)
    architecture = Architecture.of(architecture)
    refuse_not_finite(network.state_dict(), 'nothing is exported')
    description = describe_export(network, stp, architecture)
    compact_config = _without_search(config)
    scope = config.get('default_scope') or SCOPE
    compact_config.model, parts = compact_model(
        config.model.model.to_dict(), stp.supernet.compact_spec(architecture), network, scope
    )
    built = build_model(inline(compact_config.model.to_dict(), parts), scope)
    if found := differences(built, network.state_dict()):
        raise ExportError(
            'the dense config with a compact backbone, neck and head does not build the subnet; '
            'keep what differs whole (space.fix) or describe it by hand:\n  '
            + '\n  '.join(found[:5])
        )
    try:
        backbone = compact_backbone(compact_config, config, stp, architecture, parts)
        description['backbone'] = BACKBONE
    except FeatureError as error:  # as that of a classifier which is no backbone for a detector
        backbone, description['backbone'] = None, f'none: {error}'

    budget = description['budget']
    head = (
        f'# {description["architecture"]}: {shares(description)} of the dense network.\n'
        f'# {f"Meets the budget of {budget}" if budget else "Meets no budget of its run"}.\n'
        f'# Cut out{f" of {comment(source)}" if source else ""} by mmstp {__version__}; weights in '
        f'{WEIGHTS}, shapes in {PLAN}, costs in {DESCRIPTION}.\n'
    )
    weights = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
    meta = {'mmstp_version': __version__, 'architecture': str(architecture)}
    if dataset_meta:
        meta['dataset_meta'] = _plain(dataset_meta)
    with whole_file(directory / WEIGHTS) as file:
        torch.save({'state_dict': weights, 'meta': meta}, file)
    write_plan(directory / PLAN, architecture, parts)
    write_text(directory / CONFIG, head + compact_config.pretty_text)
    if backbone is None:
        (directory / BACKBONE).unlink(missing_ok=True)
    else:
        write_text(directory / BACKBONE, head + Config(backbone).pretty_text)
    write_json(directory / DESCRIPTION, description)
    return description


def _without_search(config: Config) -> Config:
    """The config of an STP run without what belongs to the search."""
    found = copy.deepcopy(config)
    hooks = config.get('custom_hooks') or []
    found.custom_hooks = [h for h in hooks if type_of(h['type'], HOOKS) not in _OWN_HOOKS]
    checkpoint: Any = found.get('default_hooks', {}).get('checkpoint') or {}
    if isinstance(checkpoint.get('save_best'), str):
        checkpoint.save_best = re.sub(r'^subnet(-[^/]*)?/', '', checkpoint.save_best)
    found.load_from, found.resume = None, False
    found.pop('work_dir', None)
    return found


def shares(description: Mapping[str, Any]) -> str:
    """What an export has of the dense network, in words; of `describe_export`."""
    names = {
        'macs_ratio': 'multiply-adds',
        'params_ratio': 'parameters',
        'activations_ratio': 'activations',
        'latency_ratio': 'latency',
    }
    return ', '.join(
        f'{description[key]:.2%} of the {name}' for key, name in names.items() if key in description
    )


def describe_export(network: nn.Module, stp: STP, architecture: Architecture) -> dict[str, Any]:
    """What an export is: costs, their convention, and the channels of every layer."""
    cost = stp.supernet.cost
    fit = cost.latency_fit
    budgets = [own for own in stp.pools.budgets.values() if own.meets(own.used(cost, architecture))]
    return {
        **stp.supernet.describe(architecture),
        'budget': ' or '.join(f'{own} within {own.tolerance:.2%}' for own in budgets) or None,
        **({} if fit is None else {'latency_table': str(fit)}),
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


def comment(text: object) -> str:
    """A text within a comment of a config: one line, without what MMEngine would replace."""
    return ' '.join(str(text).splitlines()).replace('{{', '{ {')


def _plain(value: Any) -> Any:
    """Tuples, lists, dicts and what they hold, as plain types; other objects as their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(value)
    if hasattr(value, 'tolist'):  # of NumPy and PyTorch
        return value.tolist()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def read_description(directory: str | Path) -> dict[str, Any]:
    """What `DESCRIPTION` of an export holds.

    Raises:
        ExportError: If there is none, or it is not what `write_export` writes.
    """
    path = Path(directory) / DESCRIPTION
    if not path.is_file():
        raise ExportError(f'{directory} holds no export: {path} is missing')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f'{path} cannot be read: {type(error).__name__}: {error}') from error
    if not isinstance(content, dict):
        raise ExportError(f'{path} holds {content!r:.80}; expected an object')
    for name, (expected, is_right) in _DESCRIBED.items():
        if name not in content or not is_right(content[name]):
            found = f'is {content[name]!r:.80}' if name in content else 'is missing'
            raise ExportError(f'{path}: {name} {found}; expected {expected}')
    return content


def _is_shape(value: Any) -> bool:
    right = isinstance(value, list) and len(value) == 3
    return right and all(type(size) is int and size > 0 for size in value)


# what other tools read of a description: what belongs there, and whether something is that
_DESCRIBED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'backbone': (f'{BACKBONE!r}, or why there is none', lambda value: isinstance(value, str)),
    'one_size': ('a string or null', lambda value: value is None or isinstance(value, str)),
    'input_shape': ('[channels, height, width]', _is_shape),
}


def check_folder(directory: str | Path) -> None:
    """Whether configs can be read in a folder: MMEngine pastes its path into their text.

    Raises:
        ExportError: If not; the message has the path and what in it does not do.
    """
    path = os.path.abspath(directory)
    if found := [text for text in _NOT_IN_PATHS if text in path]:
        raise ExportError(
            f'an export cannot lie in the folder {path!r}, whose path holds {found[0]!r}: MMEngine '
            'pastes the path into its configs as it is; accepted are paths without '
            + ', '.join(map(repr, _NOT_IN_PATHS))
        )


def read_config(directory: str | Path, name: str) -> Config:
    """One of the configs of an export; an `ExportError` where its folder cannot be read from."""
    check_folder(directory)
    return Config.fromfile(Path(directory) / name)


def reload(directory: str | Path) -> nn.Module:
    """The network of an export, from its config and weights alone.

    Raises:
        CheckpointError: If the weights cannot be read, are not finite or do not fit the config.
    """
    config = read_config(directory, CONFIG)
    model = config.model.to_dict()
    if config.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    network = build_model(model, config.get('default_scope', SCOPE))
    path = Path(directory) / WEIGHTS
    weights = weights_of(read_checkpoint(path), path)
    if found := differences(network, weights):
        raise CheckpointError(f'{path} does not fit its config:\n  {found[0]}')
    # not strict: SwinV2 takes keys away that it works out itself
    network.load_state_dict(weights, strict=False)
    return network


def load_backbone(directory: str | Path) -> nn.Module:
    """The backbone of an export as detectors have it; a `CheckpointError` for other weights."""
    network: Any = build_model(read_config(directory, BACKBONE).compact_backbone)
    with plain_loading():
        initialize(network, network.init_cfg)
    return network


@torch.no_grad()
def max_abs_difference(
    first: nn.Module,
    second: nn.Module,
    shape: Sequence[int],
    outputs_of: Callable[[Any, Tensor], Any] = nn.Module.__call__,
) -> float:
    """The largest difference between two networks' outputs in eval mode, on random inputs."""
    images = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    outputs = []
    for network in (first, second):
        with eval_mode(network):
            found = outputs_of(network, images.to(next(network.parameters()).device))
        outputs.append([x.cpu() for x in pytree.tree_leaves(found)])
    return max(float((x - y).abs().max()) for x, y in zip(*outputs, strict=True))
