"""What a model is called with, as users give it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import FieldError
from ..foreign import pytree

ACCEPTED = (
    'a tensor, a tuple of the positional arguments (tensors, numbers, None, and lists, tuples or '
    'dicts of these), or a dict of arguments by name'
)


def arguments(model: nn.Module, inputs: Any) -> tuple[Any, ...]:
    """The positional arguments of ``model(…)``, with tensors of their own.

    They are taken to the device and the precision of the model's parameters.

    Args:
        model: The model.
        inputs: What `ACCEPTED` says.

    Raises:
        FieldError: If they are something else, hold no tensor or an empty one, or name an argument
            that the model's forward does not have.
    """
    if isinstance(inputs, Mapping):
        given = _by_name(model, inputs)
    else:
        given = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    for leaf in pytree.tree_leaves(given):
        if not isinstance(leaf, (Tensor, bool, int, float, str, type(None))):
            raise FieldError(f'inputs={leaf!r}: expected {ACCEPTED}')
        if isinstance(leaf, Tensor) and not leaf.numel():
            raise FieldError(f'inputs: a tensor of shape {tuple(leaf.shape)} holds nothing')
    tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    if not tensors:
        raise FieldError(f'inputs, a {type(inputs).__name__}, hold no tensor: expected {ACCEPTED}')
    like = next((p for p in model.parameters() if p.is_floating_point()), tensors[0])

    def own(x: Tensor) -> Tensor:
        moved = x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)
        return moved.detach().clone()  # the same tensor may be given twice

    found: tuple[Any, ...] = pytree.tree_map_only(Tensor, own, given)
    return found


def _by_name(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Keyword arguments as positional ones; those in between get their defaults."""
    name = type(model).__name__
    try:
        bound = inspect.signature(model.forward).bind(**inputs)
    except TypeError as error:
        raise FieldError(f'inputs={sorted(map(str, inputs))}: {name}.forward: {error}') from error
    last = list(bound.arguments)[-1] if bound.arguments else ''
    bound.apply_defaults()
    if bound.kwargs.keys() & inputs.keys():
        raise FieldError(
            f'inputs: {name}.forward takes {sorted(bound.kwargs.keys() & inputs.keys())} by name '
            'alone; wrap the model in a module that takes it by position'
        )
    return bound.args[: list(bound.signature.parameters).index(last) + 1]
