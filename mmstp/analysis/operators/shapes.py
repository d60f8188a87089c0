"""Operators that move elements without changing them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ..ids import Value, align, one_dim, plain
from ..records import aligned_runs
from ..trace import operator_name, output_shape
from .table import Walker, register_handler

LOOKED_UP = 'looked up by index'


@register_handler('view_as_complex', 'view_as_real')
def as_complex(walk: Walker, node: fx.Node, x: Value) -> Value:
    """The last dimension holds the two parts of a number."""
    shape, rank = output_shape(node), len(x.shape)
    if len(shape) > rank:
        return Value(shape, [f[..., None] for f in x.factors])
    x = walk.ids.keep_whole(x, [rank - 1], 'the parts of a complex number')
    return Value(shape, [f[..., 0] for f in x.factors])


@register_handler('view', 'reshape', passes=True, supplies='reshape')
@register_handler('_unsafe_view', supplies='reshape')
@register_handler('unflatten', passes=True, supplies='unflatten')
@register_handler('flatten', 'squeeze', 'unsqueeze', passes=True)
@register_handler('reshape_as', 'view_as')
def reshape(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    shape = output_shape(node)
    out = walk.ids.reshape(x, shape)
    runs = [
        (before, after)
        for before, after in aligned_runs(x.shape, shape)
        if any(x.factor(d) is not None for d in before)
    ]
    walk.sizes(node, out.all_dims, runs)
    return out


@register_handler('permute', 'transpose', passes=True)
@register_handler('swapaxes', 'movedim', 'moveaxis', 't', 'mT')
def permute(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    # the operator itself tells the order: of a tensor of sizes 0, 1, 2, … it makes one of these
    operator: Any = node.target
    order = operator(torch.empty(tuple(range(len(x.shape))), device='meta'), *args).shape
    return walk.ids.permute(x, order, output_shape(node))


@register_handler('expand', supplies='expand')
@register_handler('expand_as')
def expand(walk: Walker, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    out = spread(walk, align(x, len(output_shape(node))), output_shape(node))
    walk.sizes(node, out.all_dims)
    return out


@register_handler('repeat', supplies='repeat')
@register_handler('tile')
def repeat(walk: Walker, node: fx.Node, x: Value, *args: Any) -> Value:
    shape = output_shape(node)
    x = align(x, len(shape))
    counts = [size // own if own > 1 else 1 for size, own in zip(shape, x.shape, strict=True)]
    copies = [np.tile(f, np.where(np.array(f.shape) > 1, counts, 1).tolist()) for f in x.factors]
    tiled = tuple(own * count for own, count in zip(x.shape, counts, strict=True))
    out = spread(walk, Value(tiled, copies), shape)
    # what has channels already keeps its count: only sizes with fresh ids may change
    walk.sizes(node, Value(shape, out.factors[len(copies) :]).all_dims)
    return out


def spread(walk: Walker, x: Value, shape: Sequence[int]) -> Value:
    """Copies along dimensions of size 1; as many as whatever they meet has, so they get ids."""
    fresh = [
        walk.ids.fresh(size).reshape(one_dim(len(shape), dim))
        for dim, (own, size) in enumerate(zip(x.shape, shape, strict=True))
        if own < size
    ]
    return Value(tuple(shape), [*x.factors, *fresh])


@register_handler('repeat_interleave')
def repeat_interleave(
    walk: Walker, node: fx.Node, x: Value, count: int | Value, dim: int | None = None, **kwargs: Any
) -> Value:
    if dim is None or isinstance(count, Value):
        walk.ids.freeze_value(x, 'repeated in a way that is not followed')
        return plain(node)
    shape, dim = output_shape(node), dim % len(x.shape)
    if x.shape[dim] == 1:
        return spread(walk, x, shape)
    copies = [np.repeat(f, count, dim) if f.shape[dim] > 1 else f for f in x.factors]
    return walk.ids.value(shape, copies)


@register_handler('channel_shuffle')
def channel_shuffle(walk: Walker, node: fx.Node, x: Value, groups: int) -> Value:
    ids, (batch, channels, *space) = walk.ids, x.shape
    apart = ids.reshape(x, (batch, groups, channels // groups, *space))
    order = [0, 2, 1, *range(3, len(apart.shape))]
    swapped = ids.permute(apart, order, (batch, channels // groups, groups, *space))
    for line in walk.lines(x, 1):  # every group keeps the same, as a view of two dimensions
        ids.tie(line.reshape(groups, -1), [0])
    return ids.reshape(swapped, x.shape)


@register_handler('cat', 'concat', 'stack')
def concatenate(walk: Walker, node: fx.Node, tensors: Sequence[Value], dim: int = 0) -> Value:
    shape = output_shape(node)
    dim %= len(shape)
    if len(tensors[0].shape) < len(shape):  # stacked
        one = (*shape[:dim], 1, *shape[dim + 1 :])
        tensors = [walk.ids.reshape(x, one) for x in tensors]
    return walk.ids.concatenate(tensors, dim, shape)


@register_handler('split', 'split_with_sizes', supplies='split')
@register_handler('chunk', 'tensor_split')
def split(
    walk: Walker, node: fx.Node, x: Value, sizes: int | Sequence[int], dim: int = 0
) -> tuple[Value, ...]:
    dim %= len(x.shape)
    lengths = [part.shape[dim] for part in node.meta['val']]
    by_size = operator_name(node).startswith('aten::split')
    # the sizes of unequal parts are supplied
    if not by_size or (isinstance(sizes, int) and len(set(lengths)) == 1):
        x = tie_equal_parts(walk, x, dim, lengths)
    places = itertools.pairwise(itertools.accumulate(lengths, initial=0))
    parts = [walk.ids.take(x, dim, start, end) for start, end in places]
    walk.sizes(node, [(part, dim) for part in parts])
    return tuple(parts)


@register_handler('unbind')
def unbind(walk: Walker, node: fx.Node, x: Value, dim: int = 0) -> tuple[Value, ...]:
    dim %= len(x.shape)
    x = tie_equal_parts(walk, x, dim, [1] * x.shape[dim])
    parts = (walk.ids.take(x, dim, place, place + 1) for place in range(x.shape[dim]))
    return tuple(walk.ids.squeeze(part, [dim]) for part in parts)


@register_handler('slice')
def slice_(
    walk: Walker, node: fx.Node, x: Value, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> Value:  # fmt: skip
    dim %= len(x.shape)
    begin, stop, _ = slice(start, end).indices(x.shape[dim])
    out = walk.ids.take(x, dim, begin, stop, step)
    if out.shape != x.shape and x.factor(dim) is not None:
        walk.sliced(node, dim, begin, stop, step)
    return out


@register_handler('narrow')
def narrow(walk: Walker, node: fx.Node, x: Value, dim: int, start: int, length: int) -> Value:
    return slice_(walk, node, x, dim, start, start + length)


@register_handler('select')
def select(walk: Walker, node: fx.Node, x: Value, dim: int, index: int) -> Value:
    dim, index = dim % len(x.shape), index % x.shape[dim]
    return walk.ids.squeeze(slice_(walk, node, x, dim, index, index + 1), [dim])


@register_handler('index')
def index(walk: Walker, node: fx.Node, x: Value, places: Sequence[Value | None]) -> Value:
    """Elements looked up along some dimensions, those of a table of positions for example."""
    dims = [dim for dim, place in enumerate(places) if place is not None]
    for place in places:
        if place is not None:
            walk.ids.freeze_value(place, 'an index')
    if dims != list(range(dims[0], dims[-1] + 1)):
        walk.ids.freeze_value(x, 'indexed along dimensions that are apart')
        return plain(node)
    x, shape = walk.ids.keep_whole(x, dims, LOOKED_UP), output_shape(node)
    first, after = dims[0], dims[-1] + 1
    found = [1] * (len(shape) - first - len(x.shape[after:]))
    return Value(shape, [f.reshape(*f.shape[:first], *found, *f.shape[after:]) for f in x.factors])


@register_handler('index_select')
def index_select(walk: Walker, node: fx.Node, x: Value, dim: int, places: Value) -> Value:
    dim %= len(x.shape)
    return index(walk, node, x, [places if d == dim else None for d in range(dim + 1)])


@register_handler('embedding')
def embedding(walk: Walker, node: fx.Node, table: Value, places: Value, *args: Any) -> Value:
    walk.produced(node, table, 1, channels=-1)
    return index(walk, node, table, [places])


@register_handler('gather')
def gather(walk: Walker, node: fx.Node, x: Value, dim: int, places: Value, *args: Any) -> Value:
    walk.ids.freeze_value(x, LOOKED_UP)
    walk.ids.freeze_value(places, 'an index')
    return plain(node)


def tie_equal_parts(walk: Walker, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    """Parts of one size keep the same channels: Python goes on splitting by equal sizes."""
    factor = x.factor(dim)
    if factor is None:
        return x
    if len(set(sizes)) > 1:
        return walk.ids.keep_whole(x, [dim], f'split into unequal parts {list(sizes)}')
    walk.ids.unite_parts(factor, dim, len(sizes))
    return x
