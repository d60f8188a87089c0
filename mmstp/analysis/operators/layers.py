"""Layers with weights: convolutions, linear layers, norms, activations with slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx

from ..ids import Ids, Value, one_dim, varying
from ..trace import operator_name, output_shape
from .products import einsum
from .table import Arguments, Kept, Walker, register_handler


@register_handler('conv1d', 'conv2d', 'conv3d')
@register_handler('conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d')
def convolution(
    walk: Walker, node: fx.Node, x: Value, weight: Value, bias: Value | None = None,
    stride: object = None, padding: object = None, dilation_or_output_padding: object = None,
    groups: int = 1, *args: Any, **kwargs: Any,
) -> Value:  # fmt: skip
    """A transposed one has its weight's input channels first, and the outputs of one group next."""
    shape, transposed = output_shape(node), 'transpose' in operator_name(node)
    if len(x.shape) < len(weight.shape):  # one image, without a batch
        batched = walk.ids.reshape(x, (1, *x.shape))
        out = _convolution(walk, node, batched, weight, bias, (1, *shape), transposed, groups)
        return walk.ids.squeeze(out, [0])
    return _convolution(walk, node, x, weight, bias, shape, transposed, groups)


def _convolution(
    walk: Walker, node: fx.Node, x: Value, weight: Value, bias: Value | None,
    shape: tuple[int, ...], transposed: bool, groups: int,
) -> Value:  # fmt: skip
    # nothing is dropped along the space that it goes over, nor of its kernel
    reason = 'varies over the space that a convolution sees'
    x = walk.ids.keep_whole(x, range(2, len(x.shape)), reason)
    walk.ids.keep_whole(weight, range(2, len(weight.shape)), 'the size of a kernel')
    x = walk.ids.group_along(x, [1])
    seen, made = (0, 1) if transposed else (1, 0)  # dimensions of the weight
    channels, columns, rows = walk.lines(x, 1), walk.lines(weight, seen), walk.lines(weight, made)
    per_group = weight.shape[0] // groups if transposed else weight.shape[1]
    if groups == 1:
        _tie_lines(walk, channels, columns)
    elif groups >= per_group:
        # whole groups are dropped: the input channels of one, and the output channels with them
        for line in walk.lines(weight, 1):
            walk.ids.freeze(line, 'one group of a grouped convolution')
        all_groups = walk.lines(weight, 0)
        channels, own = (_tie_in_groups(walk, one, groups, 1) for one in (channels, all_groups))
        _tie_lines(walk, channels, own)
        if transposed:
            rows = [np.repeat(line, weight.shape[1]) for line in own]
    else:
        # few wide groups: every group keeps the same of its channels
        channels = _tie_in_groups(walk, channels, groups, 0)
        if transposed:
            columns = _tie_in_groups(walk, columns, groups, 0)
            rows = [np.tile(line, groups) for line in rows]
        else:
            _tie_in_groups(walk, rows, groups, 0)
        _tie_lines(walk, channels, columns)
    for line in rows:
        walk.produced(node, weight, ids=line)
    batch = [factor for factor in x.factors if varying(factor) == [0]]
    new = [line.reshape(one_dim(len(shape), 1)) for line in rows]
    out = walk.ids.value(shape, [*batch, *new])
    kernel_and_space = math.prod((*weight.shape[2:], *(x if transposed else out).shape[2:]))
    walk.cost(node, 'matmul', [(x, 0), (weight, 0), (weight, 1)], kernel_and_space)
    walk.elementwise_cost(node, 'output', out)
    return out if bias is None else _per_channel(walk, node, 'bias', out, [bias])


@register_handler('torchvision::deform_conv2d')
def deformable_convolution(
    walk: Walker, node: fx.Node, x: Value, weight: Value, offset: Value, mask: Value,
    bias: Value, *args: Any,
) -> Value:  # fmt: skip
    """A convolution whose kernel's places are given, for all channels or for parts of them."""
    (groups, offset_groups), reason = args[6:8], 'the places that a kernel looks at'
    for value in (offset, mask):
        walk.ids.freeze_value(value, reason)
    if offset_groups > 1:
        x = walk.ids.keep_whole(x, [1], reason)
    return convolution(walk, node, x, weight, bias, groups=groups)


@register_handler(*'lstm gru rnn_tanh rnn_relu'.split())
def recurrent(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Any:
    """Its channels stay: a gate is a part of each weight, and a layer holds them as a list."""
    return _whole_recurrent(walk, node, x, args[1])


@register_handler(*'lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell'.split())
def recurrent_cell(walk: Walker, node: fx.Node, x: Value, state: Any, *weights: Any) -> Any:
    """One step of it."""
    states = state if isinstance(state, Sequence) else [state]
    return _whole_recurrent(walk, node, x, [w for w in weights if w is not None], states)


def _whole_recurrent(
    walk: Walker, node: fx.Node, x: Value, weights: Sequence[Value], states: Sequence[Value] = ()
) -> Any:
    steps = math.prod(x.shape[:-1])
    for weight in weights:
        if len(weight.shape) == 2:
            walk.cost(node, 'matmul', weight.all_dims, steps)
            walk.cost(node, 'output', [(weight, 0)], steps)
    name = operator_name(node)
    reason = f'operator {name!r}: recurrent layers stay whole'
    return walk.stays(node, [x, *states, *weights], reason)


def _narrow_weight_norm(
    args: list[Any], kwargs: dict[str, Any], kept: Kept, rank: int
) -> Arguments:
    """The magnitudes of the rows that are kept."""
    dim = args[2] if len(args) > 2 else 0
    if dim in kept:
        args[1] = args[1].index_select(dim, kept[dim].to(args[1].device))
    return args, kwargs


@register_handler('_weight_norm', narrowed=_narrow_weight_norm)
def weight_norm(
    walk: Walker, node: fx.Node, direction: Value, magnitude: Value, dim: int = 0
) -> Value:
    """Rows of one length each: it goes over what a row holds, and a row of zeros has none."""
    direction = walk.over_channels(node, direction, range(len(direction.shape)))
    return walk.ids.combine([direction, magnitude], direction.shape)


@register_handler('linear')
def linear(
    walk: Walker, node: fx.Node, x: Value, weight: Value, bias: Value | None = None
) -> Value:
    walk.produced(node, weight, channels=-1)
    out = einsum(walk, node, '...i,oi->...o', [x, weight])
    last = len(out.shape) - 1
    return out if bias is None else _per_channel(walk, node, 'bias', out, [bias], last)


def _narrow_norm(args: list[Any], kwargs: dict[str, Any], kept: Kept, rank: int) -> Arguments:
    """The parameters of a norm over channels (dimension 1), or over a shape that it is given."""
    dims = [1]
    if isinstance(args[1], Sequence):
        dims = list(range(rank))[-len(args[1]) :]
        args[1] = [args[0].shape[dim] for dim in dims]

    def narrow(arg: Any) -> Any:
        if isinstance(arg, Tensor) and arg.dim() == len(dims):
            for own, dim in enumerate(dims):
                if dim in kept:
                    arg = arg.index_select(own, kept[dim].to(arg.device))
        return arg

    return [args[0], *map(narrow, args[1:])], {k: narrow(arg) for k, arg in kwargs.items()}


@register_handler('batch_norm', narrowed=_narrow_norm)
def batch_norm(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    if args[4]:  # in training: where it standardises a weight
        x = walk.over_channels(node, x, [d for d in range(len(x.shape)) if d != 1])
    return instance_norm(walk, node, x, *args)


@register_handler('instance_norm')
def instance_norm(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    """Every channel on its own."""
    return _per_channel(walk, node, 'norm', x, args)


@register_handler('group_norm', narrowed=_narrow_norm)
def group_norm(
    walk: Walker, node: fx.Node, x: Value, groups: int, *args: Any, **kwargs: Any
) -> Value:
    if groups == 1:
        x = walk.over_channels(node, x, [1])
    elif groups < x.shape[1]:  # whole groups are dropped: the others' statistics stay as they are
        _tie_in_groups(walk, walk.lines(x, 1), groups, 1)
    return instance_norm(walk, node, x, *args)


@register_handler('layer_norm', supplies='layer_norm', narrowed=_narrow_norm)
@register_handler('rms_norm', narrowed=_narrow_norm)
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
    return _per_channel(walk, node, 'activation', x, args)  # of PReLU: its slopes


def _tie_in_groups(walk: Walker, lines: list[Ids], groups: int, dim: int) -> list[Ids]:
    """Ties channels within groups (``dim`` 1), or those in the same place of each (0)."""
    return [walk.ids.tie(line.reshape(groups, -1), [dim]).reshape(-1) for line in lines]


def _tie_lines(walk: Walker, first: list[Ids], second: list[Ids]) -> None:
    """Ties two rows of ids of one length; what has no partner has to stay."""
    for line in first or second:
        walk.ids.combine([Value(line.shape, lines) for lines in (first, second)], line.shape)


def _per_channel(
    walk: Walker, node: fx.Node, kind: str, x: Value, args: Sequence[Any], dim: int = 1
) -> Value:
    """Element by element; tensors among the arguments have one number per channel."""
    params = [arg for arg in args if isinstance(arg, Value)]
    shapes = [one_dim(len(x.shape), dim, math.prod(param.shape)) for param in params]
    out = walk.ids.combine([x, *map(walk.ids.reshape, params, shapes)], x.shape)
    walk.elementwise_cost(node, kind, out)
    return out
