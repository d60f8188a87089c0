"""Operators over a dimension: sums, statistics, softmax, order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from ..ids import Value, plain
from ..trace import operator_name, output_shape
from .elementwise import elementwise
from .shapes import tie_equal_parts
from .table import Walker, over_dims, register_handler


@register_handler(*'mean sum amax amin var std logsumexp prod any all'.split())
def reduction(
    walk: Walker, node: fx.Node, x: Value, dims: int | Sequence[int] | None = None, *args: Any,
    **kwargs: Any,
) -> Value:  # fmt: skip
    walk.elementwise_cost(node, 'pool', x)
    over = over_dims(x, kwargs.get('dim', dims))
    x = walk.over_channels(node, x, over)
    return walk.ids.squeeze(x, over, len(output_shape(node)) == len(x.shape))


@register_handler('var_mean', 'std_mean')
def statistics(
    walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any
) -> tuple[Value, ...]:
    one = reduction(walk, node, x, *args, **kwargs)
    return one, one


@register_handler('linalg_vector_norm', 'norm')
def vector_norm(
    walk: Walker, node: fx.Node, x: Value, order: float = 2,
    dims: int | Sequence[int] | None = None, *args: Any, **kwargs: Any,
) -> Value:  # fmt: skip
    return reduction(walk, node, x, kwargs.get('dim', dims))


@register_handler('softmax', '_softmax', 'log_softmax')
def softmax(walk: Walker, node: fx.Node, x: Value, dim: int, *args: Any, **kwargs: Any) -> Value:
    return walk.over_channels(node, x, [dim])


@register_handler('glu')
def gated(walk: Walker, node: fx.Node, x: Value, dim: int = -1) -> Value:
    """One half of the channels times the sigmoid of the other."""
    dim %= len(x.shape)
    half = x.shape[dim] // 2
    x = tie_equal_parts(walk, x, dim, [half, half])
    out = walk.ids.take(x, dim, 0, half)
    walk.elementwise_cost(node, 'activation', out)
    return out


@register_handler(
    *'fft_rfft2 fft_irfft2 fft_fft2 fft_ifft2 fft_rfftn fft_irfftn fft_rfft fft_irfft'.split()
)
def fourier(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A transform along dimensions whose sizes may change."""
    shape = output_shape(node)
    given = kwargs.get('dim', args[1] if len(args) > 1 else None)
    last = [-2, -1] if operator_name(node).endswith('2') else [-1]
    dims = over_dims(x, last if given is None else given)
    return Value(shape, walk.ids.keep_whole(x, dims, 'varies along what is transformed').factors)


@register_handler('roll', 'flip', 'cumsum', 'sort', 'topk', 'argmax', 'argmin', 'argsort', 'max')
def ordered(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    """The place of an element counts along some dimension."""
    if any(isinstance(arg, Value) for arg in args):  # the larger of two tensors
        return elementwise(walk, node, x, *args)
    name = operator_name(node).removeprefix('aten::')
    place = 1 if name in ('roll', 'topk') else 0  # behind the shifts, or the number
    default = {'sort': -1, 'argsort': -1, 'topk': -1}.get(name)
    given = kwargs.get('dim', kwargs.get('dims', args[place] if len(args) > place else default))
    if given is None or given == []:  # of the flattened tensor
        walk.ids.freeze_value(x, 'its order counts')
        return plain(node)
    dims = over_dims(x, given)
    x = walk.ids.keep_whole(x, dims, 'its order counts')
    shape, factors = output_shape(node), x.factors
    if len(shape) < len(x.shape):
        factors = [factor.squeeze(tuple(dims)) for factor in factors]
    outs, one = node.meta['val'], Value(shape, factors)
    return (one,) * len(outs) if isinstance(outs, (tuple, list)) else one
