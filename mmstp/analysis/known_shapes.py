"""Shapes that a model puts into tensors: they are known while it is traced, and stay numbers.

A detector of several levels keeps their sizes in a tensor, and loops over it::

    spatial_shapes = torch.stack([torch._shape_as_tensor(feat)[2:] for feat in feats])
    for height, width in spatial_shapes:
        y = torch.linspace(0.5, height - 0.5, height)

Tensors have no values in a trace, so that would go by values that nobody knows. But these follow
from shapes, which are numbers there: what is worked out of such tensors alone is worked out at
once, and is a constant of the trace. None of these calls is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ..foreign import pytree, untraced


class ShapeTensors:
    """The tensors that hold nothing but shapes, among those that were seen when they were made."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def gives_one(self, func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
        """Whether a call makes such tensors: of a tensor's shape, or of others of the kind."""
        if func is torch._shape_as_tensor or not self._known:
            return func is torch._shape_as_tensor
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        return bool(tensors) and all(x in self._known for x in tensors)

    def seen(self, output: Any) -> Any:
        """What such a call returned; its tensors are known from here on."""
        for x in pytree.tree_leaves(output):
            if isinstance(x, Tensor):
                self._known[x] = True
        return output


SHAPES = ShapeTensors()


class KnownShapes(TorchFunctionMode):
    """While it is entered, tensors that hold nothing but shapes have values in a trace."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not SHAPES.gives_one(func, args, kwargs):
            return func(*args, **kwargs)
        with untraced():
            if func is torch._shape_as_tensor:
                return SHAPES.seen(torch.tensor([int(size) for size in args[0].shape]))
            return SHAPES.seen(func(*args, **kwargs))
