"""Operators over space: pooling, resizing, windows, shuffles of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx

from ..ids import Value, one_dim
from ..trace import operator_name, output_shape
from .table import Walker, for_every_output, register_handler


@register_handler(
    *'max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d'.split(),
    *'max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices'.split(),
    *'adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d'.split(),
    *'adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d'.split(),
)
def pooling(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    walk.elementwise_cost(node, 'pool', x)
    return for_every_output(node, resize(walk, node, x))


@register_handler(
    *'upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d'.split(),
    *'upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d'.split(),
)
def resize(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    space = next(n for n in (1, 2, 3) if f'{n}d' in operator_name(node))
    # pooling over the last dimensions takes inputs without a batch too: count from the end
    dims = range(max(len(x.shape) - space, 1), len(x.shape))
    x = walk.ids.keep_whole(x, dims, 'varies over space that is resized')
    return walk.ids.value(output_shape(node), x.factors)


@register_handler('grid_sampler')
def sample(walk: Walker, node: fx.Node, x: Value, grid: Value, *args: Any) -> Value:
    """Each sample of the batch, which may be a head, has positions of its own."""
    number, channels, *space = x.shape
    x = walk.ids.keep_whole(x, range(2, len(x.shape)), 'varies over space that is sampled')
    grid = walk.ids.keep_whole(grid, range(1, len(grid.shape)), 'a position')
    shapes = (number, channels, *[1] * len(space)), (number, *[1] * (len(space) + 1))
    both = [Value(shape, one.factors) for shape, one in zip(shapes, (x, grid), strict=True)]
    return walk.ids.combine(both, output_shape(node))


@register_handler('constant_pad_nd', 'pad')
def pad(walk: Walker, node: fx.Node, x: Value, pads: Sequence[int], *args: Any, **kw: Any) -> Value:
    out = x
    for k in range(0, len(pads), 2):
        dim = len(x.shape) - 1 - k // 2
        shape = list(out.shape)
        shape[dim] += pads[k] + pads[k + 1]
        if out.factor(dim) is None:
            out = Value(tuple(shape), out.factors)
        else:
            before, behind = (Value((*shape[:dim], n, *shape[dim + 1 :])) for n in pads[k : k + 2])
            values = [value for value in (before, out, behind) if value.shape[dim]]
            out = walk.ids.concatenate(values, dim, shape)
    return out


@register_handler('unfold')
def windows(walk: Walker, node: fx.Node, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows of a dimension, in one that is added behind."""
    x = walk.ids.keep_whole(x, [dim % len(x.shape)], 'varies along what is cut into windows')
    return Value(output_shape(node), [f[..., None] for f in x.factors])


SHUFFLES = dict(
    im2col='unfolded', col2im='folded', pixel_shuffle='shuffled', pixel_unshuffle='shuffled'
)


@register_handler(*SHUFFLES)
def space_and_channels(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    """Every channel becomes one per position of a window, or these become one again."""
    how, shape = SHUFFLES[operator_name(node).removeprefix('aten::')], output_shape(node)
    x = walk.ids.keep_whole(x, range(2, len(x.shape)), f'varies over space that is {how}')
    lines = walk.lines(x, 1)
    if copies := shape[1] // x.shape[1]:  # none where the output has fewer channels
        lines = [np.repeat(line, copies) for line in lines]
    else:
        lines = [walk.ids.tie(line.reshape(shape[1], -1), [1]) for line in lines]
    return walk.ids.value(shape, [line.reshape(one_dim(len(shape), 1)) for line in lines])
