"""Layers with weights: convolutions, linear layers, norms, activations with slopes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from ..ids import Ids, Value, one_dim, varying
from ..trace import output_shape
from .products import product
from .table import Walker, register_handler


@register_handler('conv1d', 'conv2d', 'conv3d')
def convolution(
    walk: Walker,
    node: fx.Node,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: object = None,
    padding: object = None,
    dilation: object = None,
    groups: int = 1,
) -> Value:
    x = _over_space(walk, x, weight)
    x = walk.ids.group_along(x, [1])
    channels, columns, rows = walk.line(x, 1), walk.line(weight, 1), walk.line(weight, 0)
    if groups == 1:
        _tie_lines(walk, channels, columns)
    elif groups >= weight.shape[1]:
        # whole groups are dropped: the input channels of one, and the output channels with them
        if columns is not None:
            walk.ids.freeze(columns, 'the columns of a grouped convolution')
        _tie_lines(
            walk, _tie_in_groups(walk, channels, groups, 1), _tie_in_groups(walk, rows, groups, 1)
        )
    else:
        # few wide groups: every group keeps the same of its channels
        _tie_lines(walk, _tie_in_groups(walk, channels, groups, 0), columns)
        _tie_in_groups(walk, rows, groups, 0)
    walk.produced(node, weight)
    shape = output_shape(node)
    batch = [factor for factor in x.factors if varying(factor) == [0]]
    made = [line.reshape(one_dim(len(shape), 1)) for line in walk.lines(weight, 0)]
    out = _add_bias(walk, node, walk.ids.value(shape, [*batch, *made]), bias)
    kernel_and_space = math.prod(weight.shape[2:]) * math.prod(shape[2:])
    walk.cost(node, 'matmul', [(x, 0), (weight, 0), (weight, 1)], kernel_and_space)
    return out


@register_handler('conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d')
def transposed_convolution(
    walk: Walker, node: fx.Node, x: Value, weight: Value, bias: Value | None = None,
    stride: object = None, padding: object = None, output_padding: object = None,
    groups: int = 1, *args: Any,
) -> Value:  # fmt: skip
    """Its weight has input channels first. Grouped, its channels stay."""
    x = _over_space(walk, x, weight)
    shape = output_shape(node)
    if groups > 1:
        for value in (x, weight, *([] if bias is None else [bias])):
            walk.ids.freeze_value(value, 'a transposed convolution in groups')
        return Value(shape)
    _tie_lines(walk, walk.line(x, 1), walk.line(weight, 0))
    walk.produced(node, weight, 1)
    made = [line.reshape(one_dim(len(shape), 1)) for line in walk.lines(weight, 1)]
    out = _add_bias(walk, node, walk.ids.value(shape, made), bias)
    kernel_and_space = math.prod(weight.shape[2:]) * math.prod(x.shape[2:]) * x.shape[0]
    walk.cost(node, 'matmul', [(weight, 0), (weight, 1)], kernel_and_space)
    return out


@register_handler('linear')
def linear(
    walk: Walker, node: fx.Node, x: Value, weight: Value, bias: Value | None = None
) -> Value:
    walk.produced(node, weight, channels=-1)
    transposed = walk.ids.permute(weight, [1, 0], weight.shape[::-1])
    out = product(walk, node, x, transposed)
    return _add_bias(walk, node, out, bias, len(out.shape) - 1)


def _narrow_per_channel(
    args: list[Any], kwargs: dict[str, Any], kept: Mapping[int, Tensor], rank: int
) -> tuple[list[Any], dict[str, Any]]:
    """The parameters of a norm with one number per channel (dimension 1)."""
    return _narrow_tensors(args, kwargs, {0: kept[1]} if 1 in kept else {}, 1)


def _narrow_layer_norm(
    args: list[Any], kwargs: dict[str, Any], kept: Mapping[int, Tensor], rank: int
) -> tuple[list[Any], dict[str, Any]]:
    """The shape and the parameters of a norm over the last dimensions."""
    over = len(args[1])
    args[1] = list(args[0].shape[rank - over :])
    own = {dim - (rank - over): places for dim, places in kept.items()}
    return _narrow_tensors(args, kwargs, own, over)


def _narrow_tensors(
    args: list[Any], kwargs: dict[str, Any], kept: Mapping[int, Tensor], rank: int
) -> tuple[list[Any], dict[str, Any]]:
    """Tensors of this rank behind the first argument, at the positions kept."""

    def narrow(arg: Any) -> Any:
        if isinstance(arg, Tensor) and arg.dim() == rank:
            for dim, places in kept.items():
                arg = arg.index_select(dim, places.to(arg.device))
        return arg

    return [args[0], *map(narrow, args[1:])], {k: narrow(arg) for k, arg in kwargs.items()}


@register_handler('batch_norm', narrowed=_narrow_per_channel)
def batch_norm(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    training = args[4]  # true where it standardises a weight
    if training:
        x = walk.over_channels(node, x, [d for d in range(len(x.shape)) if d != 1])
    return instance_norm(walk, node, x, *args)


@register_handler('instance_norm')
def instance_norm(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    """Every channel on its own."""
    out = _per_channel(walk, x, [arg for arg in args if isinstance(arg, Value)])
    walk.elementwise_cost(node, 'norm', out)
    return out


@register_handler('group_norm', narrowed=_narrow_per_channel)
def group_norm(
    walk: Walker, node: fx.Node, x: Value, groups: int, *args: Any, **kwargs: Any
) -> Value:
    if groups == 1:
        x = walk.over_channels(node, x, [1])
    elif groups < x.shape[1]:  # whole groups are dropped: the others' statistics stay as they are
        _tie_in_groups(walk, walk.line(x, 1), groups, 1)
    return instance_norm(walk, node, x, *args)


@register_handler('layer_norm', supplies='layer_norm', narrowed=_narrow_layer_norm)
@register_handler('rms_norm', narrowed=_narrow_layer_norm)
def layer_norm(
    walk: Walker, node: fx.Node, x: Value, normalized_shape: Sequence[int], *args: Any, **kw: Any
) -> Value:
    dims = list(range(len(x.shape)))[-len(normalized_shape) :]
    x = walk.over_channels(node, x, dims)
    params = [arg for arg in (*args, *kw.values()) if isinstance(arg, Value)]
    out = walk.ids.combine([x, *params], x.shape)
    walk.sizes(node, [(x, dim) for dim in dims])
    walk.elementwise_cost(node, 'norm', out)
    return out


@register_handler(
    *'relu relu6 hardtanh leaky_relu elu hardswish silu mish gelu'.split(), passes=True
)
@register_handler(
    *'celu selu sigmoid hardsigmoid softplus tanh prelu threshold log_sigmoid softsign'.split()
)
def activation(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    params = [arg for arg in args if isinstance(arg, Value)]  # PReLU's slopes
    out = _per_channel(walk, x, params) if params else Value(x.shape, x.factors)
    walk.elementwise_cost(node, 'activation', out)
    return out


def _over_space(walk: Walker, x: Value, weight: Value) -> Value:
    """Nothing is dropped along the space that a convolution goes over, nor of its kernel."""
    reason = 'varies over the space that a convolution sees'
    x = walk.ids.keep_whole(x, range(2, len(x.shape)), reason)
    walk.ids.keep_whole(weight, range(2, len(weight.shape)), 'the size of a kernel')
    return x


def _tie_in_groups(walk: Walker, line: Ids | None, groups: int, dim: int) -> Ids | None:
    """Ties channels within groups (``dim`` 1), or those in the same place of each (0)."""
    return None if line is None else walk.ids.tie(line.reshape(groups, -1), [dim])


def _tie_lines(walk: Walker, first: Ids | None, second: Ids | None) -> None:
    """Ties two rows of ids of one length; what has no partner has to stay."""
    if first is not None and second is not None:
        walk.ids.unite(first.reshape(-1), second.reshape(-1))
        return
    for line in (first, second):
        if line is not None:
            walk.ids.freeze(line, 'meets a tensor of fixed size')


def _per_channel(walk: Walker, x: Value, params: Iterable[Value], dim: int = 1) -> Value:
    """One number per channel for every position."""
    rank = len(x.shape)
    lifted = [
        Value(
            one_dim(rank, dim, math.prod(param.shape)),
            [factor.reshape(one_dim(rank, dim)) for factor in param.factors],
        )
        for param in params
    ]
    return walk.ids.combine([x, *lifted], x.shape)


def _add_bias(walk: Walker, node: fx.Node, out: Value, bias: Value | None, dim: int = 1) -> Value:
    if bias is not None:
        out = _per_channel(walk, out, [bias], dim)
        walk.elementwise_cost(node, 'bias', out)
    return out
