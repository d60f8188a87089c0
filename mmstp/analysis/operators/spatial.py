"""Operators over space: pooling, resizing, windows, shuffles of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from ..ids import Value, varying
from ..trace import output_shape
from .table import Walker, register_handler

# --- over space ---------------------------------------------------------------------------------


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
        around = [
            Value(tuple(size if d == dim else s for d, s in enumerate(out.shape)))
            for size in (pads[k], pads[k + 1])
        ]
        values = [value for value in (around[0], out, around[1]) if value.shape[dim]]
        out = walk.ids.concatenate([Value(v.shape, v.factors) for v in values], dim, shape)
    return out


@register_handler('unfold')
def windows(walk: Walker, node: fx.Node, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows of a dimension, in one that is added behind."""
    dim %= len(x.shape)
    x = walk.ids.keep_whole(x, [dim], 'varies along what is cut into windows')
    return Value(output_shape(node), [f[..., None] for f in x.factors])


@register_handler('im2col')
def unfold(walk: Walker, node: fx.Node, x: Value, kernel: Sequence[int], *args: Any) -> Value:
    """Every channel becomes one per position of the kernel."""
    x = walk.ids.keep_whole(x, [2, 3], 'varies over space that is unfolded')
    shape = output_shape(node)
    lines = [np.repeat(line, shape[1] // x.shape[1]) for line in walk.lines(x, 1)]
    return walk.ids.value(shape, [line.reshape(1, -1, 1) for line in lines])


@register_handler('col2im')
def fold(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    """The positions of the kernel become one channel again."""
    shape = output_shape(node)
    x = walk.ids.keep_whole(x, [2], 'varies over space that is folded')
    lines = [walk.ids.tie(f.reshape(shape[1], -1), [1]) for f in walk.lines(x, 1)]
    return walk.ids.value(shape, [line.reshape(1, -1, 1, 1) for line in lines])


@register_handler('pixel_shuffle')
def pixel_shuffle(walk: Walker, node: fx.Node, x: Value, factor: int) -> Value:
    x = walk.ids.keep_whole(x, [2, 3], 'varies over space that is shuffled')
    lines = [walk.ids.tie(line.reshape(-1, factor**2), [1]) for line in walk.lines(x, 1)]
    return walk.ids.value(output_shape(node), [line.reshape(1, -1, 1, 1) for line in lines])


@register_handler('pixel_unshuffle')
def pixel_unshuffle(walk: Walker, node: fx.Node, x: Value, factor: int) -> Value:
    x = walk.ids.keep_whole(x, [2, 3], 'varies over space that is shuffled')
    lines = [np.repeat(line, factor**2) for line in walk.lines(x, 1)]
    return walk.ids.value(output_shape(node), [line.reshape(1, -1, 1, 1) for line in lines])
