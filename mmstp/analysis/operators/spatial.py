"""Operators over space: pooling, resizing, windows, shuffles of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from ..ids import Value, one_dim, varying
from ..trace import operator_name, output_shape
from .table import Walker, register_handler


@register_handler(
    *'max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d'.split(),
    *'max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices'.split(),
    *'adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d'.split(),
    *'adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d'.split(),
)
def pooling(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    walk.elementwise_cost(node, 'pool', x)
    out = resize(walk, node, x)
    several = isinstance(node.meta['val'], (tuple, list))  # with the places of the largest
    return (out, out) if several else out


@register_handler(
    *'upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d'.split(),
    *'upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d'.split(),
)
def resize(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    # pooling over the last dimensions takes inputs without a batch too: count from the end
    space = range(max(len(x.shape) - _space(node), 1), len(x.shape))
    x = walk.ids.keep_whole(x, space, 'varies over space that is resized')
    return walk.ids.value(output_shape(node), x.factors)


def _space(node: fx.Node) -> int:
    """Dimensions of space that a pooling or an interpolation has, as its name says."""
    return next((n for n in (1, 2, 3) if f'{n}d' in str(node.target)), 2)


@register_handler('grid_sampler')
def sample(walk: Walker, node: fx.Node, x: Value, grid: Value, *args: Any) -> Value:
    walk.ids.freeze_value(grid, 'a position')
    x = walk.ids.keep_whole(x, range(2, len(x.shape)), 'varies over space that is sampled')
    return walk.ids.value(output_shape(node), [f for f in x.factors if varying(f) == [1]])


@register_handler('constant_pad_nd', 'pad')
def pad(walk: Walker, node: fx.Node, x: Value, pads: Sequence[int], *args: Any, **kw: Any) -> Value:
    out = x
    for k in range(0, len(pads), 2):
        dim = len(x.shape) - 1 - k // 2
        shape = list(out.shape)
        shape[dim] += pads[k] + pads[k + 1]
        if out.factor(dim) is None:
            out = Value(tuple(shape), out.factors)
            continue
        before, behind = (
            Value((*shape[:dim], size, *shape[dim + 1 :])) for size in pads[k : k + 2]
        )
        values = [value for value in (before, out, behind) if value.shape[dim]]
        out = walk.ids.concatenate(values, dim, shape)
    return out


@register_handler('unfold')
def windows(walk: Walker, node: fx.Node, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows of a dimension, in one that is added behind."""
    dim %= len(x.shape)
    x = walk.ids.keep_whole(x, [dim], 'varies along what is cut into windows')
    return Value(output_shape(node), [f[..., None] for f in x.factors])


SPACE_TO_CHANNELS = {'im2col': 'unfolded', 'pixel_unshuffle': 'shuffled'}
CHANNELS_TO_SPACE = {'col2im': 'folded', 'pixel_shuffle': 'shuffled'}


@register_handler(*SPACE_TO_CHANNELS, *CHANNELS_TO_SPACE)
def space_and_channels(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    """Every channel becomes one per position of a window, or these become one again."""
    name, shape = operator_name(node).removeprefix('aten::'), output_shape(node)
    how = (SPACE_TO_CHANNELS | CHANNELS_TO_SPACE)[name]
    x = walk.ids.keep_whole(x, range(2, len(x.shape)), f'varies over space that is {how}')
    lines = walk.lines(x, 1)
    if name in SPACE_TO_CHANNELS:
        lines = [np.repeat(line, shape[1] // x.shape[1]) for line in lines]
    else:
        lines = [walk.ids.tie(line.reshape(shape[1], -1), [1]) for line in lines]
    return walk.ids.value(shape, [line.reshape(one_dim(len(shape), 1)) for line in lines])
