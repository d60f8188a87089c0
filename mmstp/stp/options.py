"""Options of STP and numbers of a step that are not what they have to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FieldError, NotFiniteError, OptionError
from ..subnets.norm_statistics import norms_with_statistics
from .losses import NORMALIZATIONS


def check_options(
    model: Any, target: Any, input_shape: Any, space: Any, pool: Any, survivor: Any
) -> None:
    """Raises a `FieldError` for an option of `STP` that is of another kind than it has to be."""
    if not isinstance(model, (Mapping, nn.Module)):
        raise FieldError(
            f'model.model={model!r}: expected the config of a classifier or detector, or one'
        )
    if target is None:
        raise FieldError(
            'model.target is missing: a fraction of the dense network (0.15), a number of '
            'multiply-adds or parameters above 1, several by metric, or a list of such'
        )
    sizes = input_shape if isinstance(input_shape, (list, tuple)) else ()
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise FieldError(
            f'model.input_shape={input_shape!r}: expected (channels, height, width) of one image'
        )
    for name, value in {'space': space, 'pool': pool, 'survivor': survivor}.items():
        off = name == 'survivor' and value is False
        if value is not None and not off and not isinstance(value, Mapping):
            hint = ', or False for no such phase' if name == 'survivor' else ''
            raise FieldError(f'model.{name}={value!r}: expected a dict of options{hint}')
    check_seed((pool or {}).get('seed') or 0)


def check_seed(seed: Any) -> None:
    """Raises an `OptionError` for a seed of the pool that is none."""
    if type(seed) is not int or seed < 0:
        raise OptionError(f'pool.seed={seed!r}: expected a whole number of at least 0')


def check_ranges(normalize: str, warmup: float, **weights: float) -> None:
    """Raises an `OptionError` for an option of `STP` that is out of range."""
    if normalize not in NORMALIZATIONS:
        raise OptionError(f'model.normalize={normalize!r}: expected one of {NORMALIZATIONS}')
    for name, value in weights.items():
        if not is_number(value) or value < 0:
            raise OptionError(f'model.{name}={value!r}: expected a number of at least 0')
    if not is_number(warmup) or not 0 <= warmup <= 1:
        raise OptionError(f'model.warmup={warmup!r}: expected a fraction in [0, 1]')


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def refuse_not_finite(losses: Mapping[str, float], images: Tensor | None = None) -> None:
    """Raises a `NotFiniteError` that names a loss that is not finite, and what is to blame.

    It comes before the weights are changed, so what was saved last is good.
    """
    for name, value in losses.items():
        if math.isfinite(value):
            continue
        reason = (
            'training diverged (a smaller learning rate, clipped gradients), or an image or a '
            'label holds numbers that are not finite'
        )
        if images is not None and not images.isfinite().all():
            broken = (~images.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
            reason = (
                f'images {broken} of this batch hold numbers that are not finite (NaN or inf): '
                'look at the data and the pipeline'
            )
        raise NotFiniteError(f'{name} is {value}: {reason}')


def not_finite(network: nn.Module, state: Mapping[str, Any] | None = None) -> list[str]:
    """The parameters and running statistics that hold NaN or inf.

    Args:
        network: Whose names count: other buffers, such as masks, may hold inf.
        state: Tensors to look at by these names; the network's own by default.
    """
    tensors: dict[str, Tensor] = dict(network.named_parameters())
    for path, norm in norms_with_statistics(network):
        own = {f'{path}.{name}' if path else name: b for name, b in norm.named_buffers()}
        tensors.update((name, b) for name, b in own.items() if b.is_floating_point())
    if state is not None:
        tensors = {name: state[name] for name in tensors if name in state}
    if not tensors:
        return []
    # one number for all: each that is read waits for a GPU
    finite = torch.stack([x.detach().isfinite().all() for x in tensors.values()]).tolist()
    return [name for name, good in zip(tensors, finite, strict=True) if not good]
