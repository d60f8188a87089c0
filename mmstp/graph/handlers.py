"""What each operator does to channel ids, and what it costs.

One handler per operator of the exported graph (the extension point of the paper's Appendix A5). A
handler is called as ``handler(walk, node, *args, **kwargs)`` with the node's arguments, every
tensor among them replaced by its `Value`, and returns the output's `Value` (or a tuple of them). It
ties ids through ``walk.ids`` and reports its cost through ``walk.cost``. An operator without a
handler makes the channels that reach it stay, and is named in the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import fx

from .values import Value, varying

Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}


def register_handler(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler for operators by their ATen names without overload: ``'conv2d'``.

    An in-place variant (``'relu_'``) is handled as its functional one.
    """

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's (first) output, from the trace."""
    value = node.meta['val']
    first = value[0] if isinstance(value, (tuple, list)) else value
    return tuple(first.shape)


# --- layers with weights ------------------------------------------------------------------------


@register_handler('conv1d', 'conv2d', 'conv3d')
def convolution(
    walk: Any,
    node: fx.Node,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: object = None,
    padding: object = None,
    dilation: object = None,
    groups: int = 1,
) -> Value:
    ids = walk.ids
    ids.freeze_value(x, 'varies over the space that a convolution sees', range(2, len(x.shape)))
    ids.freeze_value(weight, 'the size of a kernel', range(2, len(weight.shape)))
    channels = walk.line(x, 1)
    columns = walk.line(weight, 1)
    rows = walk.line(weight, 0)
    if groups == 1:
        _tie_lines(walk, channels, columns)
    elif groups >= weight.shape[1]:
        # whole groups are dropped: the input channels of one, and the output channels with them
        if columns is not None:
            ids.freeze(columns, 'the columns of a grouped convolution')
        if channels is not None:
            channels = ids.tie(channels.reshape(groups, -1), [1])
        if rows is not None:
            rows = ids.tie(rows.reshape(groups, -1), [1])
        _tie_lines(walk, channels, rows)
    else:
        # few wide groups: every group keeps the same of its channels
        if channels is not None:
            channels = ids.tie(channels.reshape(groups, -1), [0])
        if rows is not None:
            ids.tie(rows.reshape(groups, -1), [0])
        _tie_lines(walk, channels, columns)
    walk.produced(node, weight)
    shape = output_shape(node)
    factors = [factor.reshape(-1, *[1] * (len(shape) - 2)) for factor in _lines(walk, weight, 0)]
    out = ids.value(shape, [factor[None] for factor in factors])
    if bias is not None:
        out = _add_bias(walk, node, out, bias, 1)
    kernel_and_space = math.prod(weight.shape[2:]) * math.prod(shape[2:]) * shape[0]
    walk.cost(node, 'matmul', [(weight, 0), (weight, 1)], kernel_and_space)
    return out


@register_handler('linear')
def linear(walk: Any, node: fx.Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    ids = walk.ids
    last = len(x.shape) - 1
    _tie_lines(walk, walk.line(x, last), walk.line(weight, 1))
    walk.produced(node, weight)
    shape = output_shape(node)
    kept = [factor for factor in x.factors if factor.shape[last] == 1]
    rows = [line.reshape([1] * last + [-1]) for line in _lines(walk, weight, 0)]
    out = ids.value(shape, [*kept, *rows])
    if bias is not None:
        out = _add_bias(walk, node, out, bias, last)
    walk.cost(
        node,
        'matmul',
        [*[(out, dim) for dim in range(len(shape))], (weight, 1)],
    )
    return out


@register_handler('batch_norm')
def batch_norm(walk: Any, node: fx.Node, x: Value, *args: Any) -> Value:
    params = [arg for arg in args if isinstance(arg, Value)]
    out = _per_channel(walk, x, params)
    walk.elementwise_cost(node, 'norm', out)
    return out


# --- element by element -------------------------------------------------------------------------


@register_handler(
    *'relu relu6 hardtanh leaky_relu elu celu selu sigmoid hardsigmoid hardswish silu mish'.split(),
    *'softplus tanh gelu prelu'.split(),
)
def activation(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    params = [arg for arg in args if isinstance(arg, Value)]  # PReLU's slopes
    out = _per_channel(walk, x, params) if params else Value(x.shape, x.factors)
    walk.elementwise_cost(node, 'activation', out)
    return out


@register_handler('add', 'sub', 'rsub')
def addition(walk: Any, node: fx.Node, *args: Any, **kwargs: Any) -> Value:
    out = elementwise(walk, node, *args, **kwargs)
    walk.elementwise_cost(node, 'add', out)
    return out


@register_handler(
    *'mul div pow neg abs exp log sqrt rsqrt reciprocal square clamp clamp_min clamp_max'.split(),
    *'minimum maximum where sin cos erf log1p expm1 floor round sign eq ne lt le gt ge'.split(),
    *'masked_fill logical_not logical_and logical_or bitwise_not addcmul'.split(),
)
def elementwise(walk: Any, node: fx.Node, *args: Any, **kwargs: Any) -> Value:
    operands = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value)]
    return walk.ids.combine(operands, output_shape(node))


@register_handler(
    *'dropout feature_dropout alpha_dropout clone contiguous detach alias to _to_copy'.split(),
    *'lift_fresh_copy type_as zeros_like ones_like empty_like full_like identity'.split(),
    '_assert_tensor_metadata',
)
def same(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    return Value(x.shape, x.factors)


@register_handler('copy')
def copy(walk: Any, node: fx.Node, target: Value, source: Value, *args: Any) -> Value:
    return walk.ids.combine([target, source], target.shape)


# --- over space ---------------------------------------------------------------------------------


@register_handler(
    *'max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d'.split(),
    *'adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d'.split(),
    *'adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d'.split(),
)
def pooling(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    walk.elementwise_cost(node, 'pool', x)
    return resize(walk, node, x)


@register_handler(
    *'upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d'.split(),
    *'upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d'.split(),
)
def resize(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    walk.ids.freeze_value(x, 'varies over space that is resized', range(2, len(x.shape)))
    shape = output_shape(node)
    return walk.ids.value(shape, [f for f in x.factors if varying(f) == [1] or varying(f) == [0]])


@register_handler('mean', 'sum', 'amax', 'amin')
def reduction(
    walk: Any, node: fx.Node, x: Value, dims: Sequence[int] | None = None, keepdim: bool = False,
    **kwargs: Any,
) -> Value:  # fmt: skip
    walk.elementwise_cost(node, 'pool', x)
    every = range(len(x.shape))
    return walk.ids.reduce(x, every if dims is None else dims, keepdim, output_shape(node))


@register_handler('constant_pad_nd', 'pad')
def pad(walk: Any, node: fx.Node, x: Value, pads: Sequence[int], *args: Any, **kw: Any) -> Value:
    out = x
    for k in range(0, len(pads), 2):
        dim = len(x.shape) - 1 - k // 2
        shape = list(out.shape)
        shape[dim] += pads[k] + pads[k + 1]
        if out.factor(dim) is None:
            out = Value(tuple(shape), out.factors)
            continue
        around = [
            Value(tuple(size if d == dim else s for d, s in enumerate(out.shape)))
            for size in (pads[k], pads[k + 1])
        ]
        values = [value for value in (around[0], out, around[1]) if value.shape[dim]]
        out = walk.ids.concatenate([Value(v.shape, v.factors) for v in values], dim, shape)
    return out


# --- shapes -------------------------------------------------------------------------------------


@register_handler('view', 'reshape', '_unsafe_view', 'flatten', 'unflatten', 'squeeze', 'unsqueeze')
def reshape(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    out = walk.ids.reshape(x, output_shape(node))
    for dim, size in enumerate(out.shape):
        walk.baked(node, size, out, dim)
    return out


@register_handler('permute')
def permute(walk: Any, node: fx.Node, x: Value, order: Sequence[int]) -> Value:
    rank = len(x.shape)
    return walk.ids.permute(x, [dim % rank for dim in order], output_shape(node))


@register_handler('transpose', 'swapaxes')
def transpose(walk: Any, node: fx.Node, x: Value, first: int, second: int) -> Value:
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return walk.ids.permute(x, order, output_shape(node))


@register_handler('t')
def matrix_transpose(walk: Any, node: fx.Node, x: Value) -> Value:
    return walk.ids.permute(x, list(range(len(x.shape)))[::-1], output_shape(node))


@register_handler('expand', 'expand_as')
def expand(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    return walk.ids.combine([x], output_shape(node))


@register_handler('cat', 'concat')
def concatenate(walk: Any, node: fx.Node, tensors: Sequence[Value], dim: int = 0) -> Value:
    shape = output_shape(node)
    return walk.ids.concatenate(tensors, dim % len(shape), shape)


@register_handler('stack')
def stack(walk: Any, node: fx.Node, tensors: Sequence[Value], dim: int = 0) -> Value:
    shape = output_shape(node)
    dim %= len(shape)
    one = (*shape[:dim], 1, *shape[dim + 1 :])
    lifted = [walk.ids.reshape(tensor, one) for tensor in tensors]
    return walk.ids.concatenate(lifted, dim, shape)


@register_handler('chunk', 'split', 'split_with_sizes', 'tensor_split')
def split(
    walk: Any, node: fx.Node, x: Value, sizes: int | Sequence[int], dim: int = 0
) -> tuple[Value, ...]:
    shapes = [tuple(part.shape) for part in node.meta['val']]
    dim %= len(x.shape)
    _tie_equal_parts(walk, x, dim, [shape[dim] for shape in shapes])
    parts, start = [], 0
    for shape in shapes:
        part = walk.ids.take(x, dim, start, start + shape[dim])
        walk.baked(node, shape[dim], part, dim)
        parts.append(part)
        start += shape[dim]
    return tuple(parts)


@register_handler('slice')
def slice_(
    walk: Any, node: fx.Node, x: Value, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> Value:  # fmt: skip
    dim %= len(x.shape)
    begin, stop, _ = slice(start, end).indices(x.shape[dim])
    out = walk.ids.take(x, dim, begin, stop, step)
    if out.shape != x.shape and x.factor(dim) is not None:
        walk.sliced(node, x, dim, begin, stop, step)
        walk.baked(node, out.shape[dim], out, dim)
    return out


@register_handler('select')
def select(walk: Any, node: fx.Node, x: Value, dim: int, index: int) -> Value:
    walk.ids.freeze_value(x, 'a single channel is selected', [dim % len(x.shape)])
    return walk.ids.reduce(x, [dim], False, output_shape(node))


@register_handler('getitem')
def getitem(walk: Any, node: fx.Node, values: Sequence[Value], index: int) -> Value:
    return values[index]


# --- shared by several --------------------------------------------------------------------------


def _lines(walk: Any, value: Value, dim: int) -> list[Any]:
    """The ids along one dimension as a list that is empty where there are none."""
    line = walk.line(value, dim)
    return [] if line is None else [line]


def _tie_lines(walk: Any, first: Any, second: Any) -> None:
    """Ties two rows of ids of one length; what has no partner has to stay."""
    if first is not None and second is not None:
        walk.ids.unite(first.reshape(-1), second.reshape(-1))
        return
    for line in (first, second):
        if line is not None:
            walk.ids.freeze(line, 'meets a tensor of fixed size')


def _per_channel(walk: Any, x: Value, params: Iterable[Value]) -> Value:
    """One number per channel (dimension 1) for every position."""
    shape = (1, -1, *[1] * (len(x.shape) - 2))
    lifted = [
        Value(
            tuple(np.broadcast_to(0, param.shape).reshape(shape).shape),
            [factor.reshape(shape) for factor in param.factors],
        )
        for param in params
    ]
    return walk.ids.combine([x, *lifted], x.shape)


def _add_bias(walk: Any, node: fx.Node, out: Value, bias: Value, dim: int) -> Value:
    shape = [1] * len(out.shape)
    shape[dim] = -1
    lifted = Value(
        tuple(size if d == dim else 1 for d, size in enumerate(out.shape)),
        [factor.reshape(shape) for factor in bias.factors],
    )
    out = walk.ids.combine([out, lifted], out.shape)
    walk.elementwise_cost(node, 'bias', out)
    return out


def _tie_equal_parts(walk: Any, x: Value, dim: int, sizes: Sequence[int]) -> None:
    """Parts of one size keep the same channels: Python goes on splitting by equal sizes."""
    factor = x.factor(dim)
    if factor is None:
        return
    if len(set(sizes)) > 1:
        walk.ids.freeze(factor, f'split into unequal parts {list(sizes)}')
        return
    at = np.cumsum(sizes)[:-1]
    parts = np.split(factor, at, axis=dim)
    for part in parts[1:]:
        walk.ids.unite(parts[0], part)
