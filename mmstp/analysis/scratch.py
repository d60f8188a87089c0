"""What is tried on: copies of a model, values that keep signals alive, chance of its own."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SupernetError
from ..foreign import pytree


def copied(model: nn.Module, share_parameters: bool = False) -> nn.Module:
    """A deep copy, in the same modes.

    Args:
        model: Any module. Tensors that it holds in attributes and that have a history (what
            `torch.nn.utils.weight_norm` works out, what a forward kept) are copied without that.
        share_parameters: The copy has the model's own parameters, not copies of them.

    Raises:
        SupernetError: If the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in pytree.tree_leaves(list(vars(module).values())):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    if share_parameters:
        memo.update((id(parameter), parameter) for parameter in model.parameters())
    modes = {path: module.training for path, module in model.named_modules()}
    try:
        other = copy.deepcopy(model, memo)
    except Exception as error:
        raise SupernetError(
            f'{type(model).__name__} cannot be copied (copy.deepcopy): '
            f'{type(error).__name__}: {error}. Subnets are exported from copies: mend the '
            '__deepcopy__, __reduce__ or __getstate__ of the module that fails'
        ) from error
    found = dict(other.named_modules())
    if found.keys() != modes.keys():
        missing = sorted(modes.keys() ^ found.keys())
        raise SupernetError(
            f'a copy (copy.deepcopy) of {type(model).__name__} has other modules than it has: '
            f'{", ".join(missing[:3])}. Mend the __deepcopy__ of what holds them'
        )
    for path, module in found.items():
        module.training = modes[path]  # a class may copy itself in another mode
    return other


def clones(inputs: Any) -> Any:
    """Inputs of which each tensor is one of its own: a forward may change one in place."""
    return pytree.tree_map_only(Tensor, torch.clone, inputs)


def random_like(inputs: Any, generator: torch.Generator) -> Any:
    """Normal numbers in place of floating-point tensors; copies of the others."""

    def drawn(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.clone()
        return torch.randn(x.shape, generator=generator).to(x)

    return pytree.tree_map_only(Tensor, drawn, inputs)


def in_precision(dtype: torch.dtype, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Real and complex tensors of another precision."""

    def converted(x: Tensor) -> Tensor:
        if x.is_complex():
            return x.to(dtype.to_complex())
        return x.to(dtype) if x.is_floating_point() else x

    found: tuple[Any, ...] = pytree.tree_map_only(Tensor, converted, inputs)
    return found


def set_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Real and complex numbers of another precision, in place.

    ``model.to(dtype)`` takes the imaginary parts away.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
        elif tensor.is_complex():
            tensor.data = tensor.data.to(dtype.to_complex())


def surrounded(
    inputs: tuple[Any, ...], others: tuple[Any, ...], twice: bool = True
) -> tuple[Any, ...]:
    """The inputs, one of the others and (``twice``) the inputs again in one batch.

    The first tensor says how many are a batch; twice as many and one are no multiple of it.
    """
    size = next(x.shape[:1] for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor))

    def joined(x: Any, other: Any) -> Any:
        together = isinstance(x, Tensor) and x.dim() and x.shape[:1] == size
        return torch.cat([x, other[:1], *[x] * twice]) if together else x

    found: tuple[Any, ...] = pytree.tree_map(joined, inputs, others)
    return found


def randomize(model: nn.Module, generator: torch.Generator, at_most: float = math.inf) -> None:
    """Values that keep signals alive through any depth.

    A fresh network can hide mistakes: residual branches that start at zero, outputs of 1e-10.
    Buffers other than running statistics (positions, frequencies, means of images) stay.

    Args:
        model: Its parameters and running statistics are changed.
        generator: Of the numbers.
        at_most: Tensors of more numbers than this keep theirs, unless these are all zero.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        statistic = name.endswith(('running_mean', 'running_var'))
        if not tensor.is_floating_point() or not (isinstance(tensor, nn.Parameter) or statistic):
            continue
        if tensor.numel() > at_most and tensor.any():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            fan_in = max(1, math.prod(tensor.shape[1:]))
            value = noise * math.sqrt(2 / fan_in)
        elif name.endswith(('bias', 'running_mean')):
            value = noise * 0.1
        else:
            value = 1 + noise.clamp(-2, 2) * 0.2
        tensor.data.copy_(value)


@contextmanager
def random_state_kept(seed: int | None = None) -> Iterator[None]:
    """Inside, random numbers are drawn that nobody outside misses, if wanted those of a seed."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
