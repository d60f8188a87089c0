"""Operators over a dimension: sums, statistics, softmax, order."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..ids import Value
from ..trace import GETITEM, operator_name, output_shape
from .elementwise import elementwise
from .shapes import tie_equal_parts
from .table import Walker, for_every_output, register_handler

ORDER_COUNTS = 'its order counts'
TRANSFORMED = 'varies along what is transformed'


def _over(node: fx.Node, x: Value) -> list[int]:
    """The dimensions that an operator is given, or has by default; all, where there are none."""
    # only the schema tells their place, which differs between operators and even overloads
    bound = node.normalized_arguments(node.graph.owning_module, normalize_to_only_use_kwargs=True)
    assert bound is not None
    given, rank = bound.kwargs.get('dim', bound.kwargs.get('dims')), len(x.shape)
    return [dim % rank for dim in ([given] if isinstance(given, int) else given or range(rank))]


@register_handler(
    *'mean sum amax amin var std var_mean std_mean logsumexp prod any all'.split(),
    *'linalg_vector_norm norm'.split(),
)
def reduction(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    walk.elementwise_cost(node, 'pool', x)
    over = _over(node, x)
    x = walk.over_channels(node, x, over)
    out = walk.ids.squeeze(x, over, len(output_shape(node)) == len(x.shape))
    return for_every_output(node, out)


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
    x = walk.ids.keep_whole(x, _over(node, x), TRANSFORMED)
    return Value(output_shape(node), x.factors)


@register_handler('max', 'min', 'median', 'nanmedian', 'mode')
def extreme(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    """A reduction, unless the place is asked for too."""
    if any(isinstance(arg, Value) for arg in args):  # the larger of two tensors
        return elementwise(walk, node, x, *args)
    places = isinstance(node.meta['val'], (tuple, list)) and any(
        operator_name(user) != GETITEM or (user.args[1] == 1 and user.users) for user in node.users
    )
    return (ordered if places else reduction)(walk, node, x, *args, **kwargs)


@register_handler('tril', 'triu')
def triangle(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    """Places along the last two dimensions count."""
    rank = len(x.shape)
    return walk.ids.keep_whole(x, [rank - 2, rank - 1], ORDER_COUNTS)


@register_handler('roll', 'flip', 'cumsum', 'sort', 'topk', 'argmax', 'argmin', 'argsort')
def ordered(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    """The place of an element counts along some dimension, or in the flattened tensor."""
    over, shape = _over(node, x), output_shape(node)
    x = walk.ids.keep_whole(x, over, ORDER_COUNTS)
    if len(shape) < len(x.shape):
        x = walk.ids.squeeze(x, over)
    return for_every_output(node, Value(shape, x.factors))
