"""Operators that work element by element, and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from ..ids import Value, one_dim, plain
from ..trace import GETITEM, output_shape
from .table import Walker, register_handler


@register_handler('add', passes=True)
@register_handler('sub', 'rsub')
def addition(walk: Walker, node: fx.Node, *args: Any, **kwargs: Any) -> Value:
    out = elementwise(walk, node, *args, **kwargs)
    walk.elementwise_cost(node, 'add', out)
    return out


@register_handler(
    *'mul div pow neg abs exp log sqrt rsqrt reciprocal square clamp clamp_min clamp_max'.split(),
    *'minimum maximum where sin cos erf log1p expm1 floor round sign eq ne lt le gt ge'.split(),
    *'masked_fill logical_not logical_and logical_or bitwise_not addcmul remainder'.split(),
    *'floor_divide true_divide isnan isinf nan_to_num lerp ceil tan atan log2 exp2'.split(),
    *'bitwise_and bitwise_or fmod copy real imag'.split(),
)
def elementwise(walk: Walker, node: fx.Node, *args: Any, **kwargs: Any) -> Value:
    operands = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value)]
    return walk.ids.combine(operands, output_shape(node))


@register_handler(*'dropout feature_dropout clone contiguous detach alias to'.split(), passes=True)
@register_handler(
    *'alpha_dropout _to_copy type_as zeros_like ones_like empty_like full_like'.split(),
    *'lift_fresh_copy identity zero fill'.split(),
)
def same(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    return Value(x.shape, x.factors)


@register_handler(*'zeros ones full new_zeros new_ones new_full'.split(), supplies='constant')
def one_value(walk: Walker, node: fx.Node, *args: Any, **kwargs: Any) -> Value:
    """As long as the channels that it meets, a part of it serves a part of them."""
    shape = output_shape(node)
    fresh = [
        walk.ids.fresh(size).reshape(one_dim(len(shape), dim))
        for dim, size in enumerate(shape)
        if size > 1
    ]
    walk.ids.constants += fresh
    out = Value(shape, fresh)
    walk.sizes(node, out.all_dims)
    return out


@register_handler(
    *'empty new_empty arange linspace eye scalar_tensor tensor new_tensor'.split(),
    *'rand randn rand_like randn_like bernoulli'.split(),
    *'meshgrid _assert_scalar sym_size sym_constrain_range_for_size'.split(),
)
def constant(walk: Walker, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """Made anew, of fixed size."""
    return plain(node)


@register_handler(GETITEM, passes=True)
def getitem(walk: Walker, node: fx.Node, values: Sequence[Value], index: int) -> Value:
    return values[index]
