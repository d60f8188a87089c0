"""What each operator does to channel ids, and what it costs.

One handler per operator of the exported graph (the extension point of the paper's Appendix A5). A
handler is called as ``handler(walk, node, *args, **kwargs)`` with the node's arguments, every
tensor among them replaced by its `Value`, and returns the output's `Value` (or a tuple of them). It
ties ids through ``walk.ids`` and reports its cost through ``walk.cost``. An operator without a
handler makes the channels that reach it stay, and is named in the report.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import fx

from .nodes import operator_name, output_shape, plain
from .values import Value, align, aligned_runs, varying

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
    x = ids.keep_whole(x, range(2, len(x.shape)), 'varies over the space that a convolution sees')
    ids.keep_whole(weight, range(2, len(weight.shape)), 'the size of a kernel')
    x = ids.group_along(x, [1])
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
    batch = [factor for factor in x.factors if varying(factor) == [0]]
    out = ids.value(shape, [*batch, *(factor[None] for factor in factors)])
    if bias is not None:
        out = _add_bias(walk, node, out, bias, 1)
    kernel_and_space = math.prod(weight.shape[2:]) * math.prod(shape[2:])
    walk.cost(node, 'matmul', [(x, 0), (weight, 0), (weight, 1)], kernel_and_space)
    return out


@register_handler('conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d')
def transposed_convolution(
    walk: Any, node: fx.Node, x: Value, weight: Value, bias: Value | None = None,
    stride: object = None, padding: object = None, output_padding: object = None,
    groups: int = 1, *args: Any,
) -> Value:  # fmt: skip
    """Its weight has input channels first. Grouped, its channels stay."""
    ids = walk.ids
    space = range(2, len(x.shape))
    x = ids.keep_whole(x, space, 'varies over the space that a convolution sees')
    ids.keep_whole(weight, space, 'the size of a kernel')
    shape = output_shape(node)
    if groups > 1:
        for value in (x, weight, *([] if bias is None else [bias])):
            ids.freeze_value(value, 'a transposed convolution in groups')
        return Value(shape)
    _tie_lines(walk, walk.line(x, 1), walk.line(weight, 0))
    walk.produced(node, weight, 1)
    rows = [line.reshape(1, -1, *[1] * len(space)) for line in _lines(walk, weight, 1)]
    out = ids.value(shape, rows)
    if bias is not None:
        out = _add_bias(walk, node, out, bias, 1)
    kernel_and_space = math.prod(weight.shape[2:]) * math.prod(x.shape[2:]) * x.shape[0]
    walk.cost(node, 'matmul', [(weight, 0), (weight, 1)], kernel_and_space)
    return out


@register_handler('linear')
def linear(walk: Any, node: fx.Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    walk.produced(node, weight)
    transposed = walk.ids.permute(weight, [1, 0], weight.shape[::-1])
    out = product(walk, node, x, transposed)
    return out if bias is None else _add_bias(walk, node, out, bias, len(out.shape) - 1)


@register_handler('matmul', 'mm', 'bmm')
def product(walk: Any, node: fx.Node, a: Value, b: Value) -> Value:
    return walk.ids.reshape(_matrix_product(walk, node, a, b), output_shape(node))


def _matrix_product(walk: Any, node: fx.Node, a: Value, b: Value) -> Value:
    """``a @ b``, with as many leading dimensions as either has."""
    rank = max(len(a.shape), len(b.shape), 2)
    if len(a.shape) == 1:
        a = walk.ids.reshape(a, (1, *a.shape))
    if len(b.shape) == 1:
        b = walk.ids.reshape(b, (*b.shape, 1))
    left, right = align(a, rank), align(b, rank)
    # dimensions of both: leading ones, rows of a, summed over, columns of b
    left = walk.ids.reshape(left, (*left.shape, 1))
    right = walk.ids.reshape(right, (*right.shape[:-2], 1, *right.shape[-2:]))
    shape = tuple(max(pair) for pair in zip(left.shape, right.shape, strict=True))
    every = walk.ids.contract([left, right], shape, [rank - 1])
    walk.cost(node, 'matmul', [(every, dim) for dim in range(rank + 1)])
    return walk.ids.squeeze(every, [rank - 1])


@register_handler('addmm', 'baddbmm')
def add_product(walk: Any, node: fx.Node, added: Value, a: Value, b: Value, **kwargs: Any) -> Value:
    out = product(walk, node, a, b)
    return walk.ids.combine([out, added], out.shape)


@register_handler('einsum')
def einsum(
    walk: Any, node: fx.Node, equation: str, operands: Sequence[Value], **kwargs: Any
) -> Value:
    """Any product of operands; dimensions are named by letters."""
    inputs, _, output = equation.replace(' ', '').partition('->')
    spare = [c for c in string.ascii_letters if c not in equation]
    terms = inputs.split(',')
    widest = max(
        (len(x.shape) - len(term) + 3 for term, x in zip(terms, operands, strict=True)
         if '...' in term), default=0,
    )  # fmt: skip
    dots = ''.join(spare[:widest])
    terms = [
        term.replace('...', dots[widest - (len(x.shape) - len(term) + 3) :]) if '...' in term
        else term
        for term, x in zip(terms, operands, strict=True)
    ]  # fmt: skip
    if '->' not in equation:
        names = ''.join(terms).replace(dots, '')
        output = dots + ''.join(sorted(c for c in set(names) if names.count(c) == 1))
    output = output.replace('...', dots)
    letters = output + ''.join(sorted(set(''.join(terms)) - set(output)))
    sizes = {
        letter: size
        for term, x in zip(terms, operands, strict=True)
        for letter, size in zip(term, x.shape, strict=True)
        if size > 1
    }
    full = tuple(sizes.get(letter, 1) for letter in letters)
    aligned = [_by_letters(walk, x, term, letters) for x, term in zip(operands, terms, strict=True)]
    summed = range(len(output), len(letters))
    every = walk.ids.contract(aligned, full, summed)
    walk.cost(node, 'matmul', [(every, dim) for dim in range(len(letters))])
    return walk.ids.squeeze(every, summed)


def _by_letters(walk: Any, x: Value, term: str, letters: str) -> Value:
    """A tensor with a dimension for every letter, of size 1 where it has none."""
    if len(set(term)) < len(term):  # a diagonal
        walk.ids.freeze_value(x, 'the diagonal of a product')
        sizes = dict(zip(term, x.shape, strict=True))
        return Value(tuple(sizes.get(letter, 1) for letter in letters))
    order = sorted(range(len(term)), key=lambda d: letters.index(term[d]))
    x = walk.ids.permute(x, order, [x.shape[d] for d in order])
    sizes = dict(zip(sorted(term, key=letters.index), x.shape, strict=True))
    return walk.ids.reshape(x, tuple(sizes.get(letter, 1) for letter in letters))


@register_handler('scaled_dot_product_attention')
def attention(
    walk: Any, node: fx.Node, query: Value, key: Value, value: Value, mask: Value | None = None,
    *args: Any, scale: float | None = None, **kwargs: Any,
) -> Value:  # fmt: skip
    ids, rank = walk.ids, len(query.shape)
    if scale is None:
        reason = 'its size is the scale of the attention'
        query, key = (
            ids.keep_whole(ids.group_along(x, [rank - 1]), [rank - 1], reason) for x in (query, key)
        )
    order = [*range(rank - 2), rank - 1, rank - 2]
    keys = ids.permute(key, order, [key.shape[d] for d in order])
    scores = _matrix_product(walk, node, query, keys)
    if mask is not None:
        scores = ids.combine([scores, mask], scores.shape)
    return _matrix_product(walk, node, scores, value)


@register_handler('batch_norm')
def batch_norm(walk: Any, node: fx.Node, x: Value, *args: Any) -> Value:
    training = args[4]  # true where it standardises a weight
    if training:
        x = walk.over_channels(node, x, [d for d in range(len(x.shape)) if d != 1])
    return instance_norm(walk, node, x, *args)


@register_handler('instance_norm')
def instance_norm(walk: Any, node: fx.Node, x: Value, *args: Any) -> Value:
    """Every channel on its own."""
    out = _per_channel(walk, x, [arg for arg in args if isinstance(arg, Value)])
    walk.elementwise_cost(node, 'norm', out)
    return out


@register_handler('group_norm')
def group_norm(walk: Any, node: fx.Node, x: Value, groups: int, *args: Any, **kwargs: Any) -> Value:
    if groups == 1:
        x = walk.over_channels(node, x, [1])
    elif groups < x.shape[1]:  # whole groups are dropped: the others' statistics stay as they are
        channels = walk.line(x, 1)
        if channels is not None:
            walk.ids.tie(channels.reshape(groups, -1), [1])
    return instance_norm(walk, node, x, *args)


@register_handler('layer_norm', 'rms_norm')
def layer_norm(
    walk: Any, node: fx.Node, x: Value, normalized_shape: Sequence[int], *args: Any, **kw: Any
) -> Value:
    dims = list(range(len(x.shape)))[-len(normalized_shape) :]
    x = walk.over_channels(node, x, dims)
    params = [arg for arg in (*args, *kw.values()) if isinstance(arg, Value)]
    out = walk.ids.combine([x, *params], x.shape)
    walk.sizes(node, [(x, dim) for dim in dims])
    walk.elementwise_cost(node, 'norm', out)
    return out


# --- element by element -------------------------------------------------------------------------


@register_handler(
    *'relu relu6 hardtanh leaky_relu elu celu selu sigmoid hardsigmoid hardswish silu mish'.split(),
    *'softplus tanh gelu prelu threshold log_sigmoid softsign'.split(),
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
    *'masked_fill logical_not logical_and logical_or bitwise_not addcmul remainder'.split(),
    *'floor_divide true_divide isnan isinf nan_to_num lerp ceil tan atan log2 exp2'.split(),
    *'bitwise_and bitwise_or fmod'.split(),
)
def elementwise(walk: Any, node: fx.Node, *args: Any, **kwargs: Any) -> Value:
    operands = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Value)]
    return walk.ids.combine(operands, output_shape(node))


@register_handler(
    *'dropout feature_dropout alpha_dropout clone contiguous detach alias to _to_copy'.split(),
    *'lift_fresh_copy type_as zeros_like ones_like empty_like full_like identity zero fill'.split(),
)
def same(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    return Value(x.shape, x.factors)


@register_handler('copy')
def copy(walk: Any, node: fx.Node, target: Value, source: Value, *args: Any) -> Value:
    return walk.ids.combine([target, source], target.shape)


# --- over space ---------------------------------------------------------------------------------


@register_handler(
    *'max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d'.split(),
    *'max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices'.split(),
    *'adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d'.split(),
    *'adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d'.split(),
)
def pooling(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    walk.elementwise_cost(node, 'pool', x)
    out = resize(walk, node, x)
    several = isinstance(node.meta['val'], (tuple, list))  # with the places of the largest
    return (out, out) if several else out


@register_handler(
    *'upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d'.split(),
    *'upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d'.split(),
)
def resize(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    # pooling over the last dimensions takes inputs without a batch too: count from the end
    space = range(max(len(x.shape) - _space(node), 1), len(x.shape))
    x = walk.ids.keep_whole(x, space, 'varies over space that is resized')
    return walk.ids.value(output_shape(node), x.factors)


def _space(node: fx.Node) -> int:
    """Dimensions of space that a pooling or an interpolation has, as its name says."""
    return next((n for n in (1, 2, 3) if f'{n}d' in str(node.target)), 2)


@register_handler('grid_sampler')
def sample(walk: Any, node: fx.Node, x: Value, grid: Value, *args: Any) -> Value:
    walk.ids.freeze_value(grid, 'a position')
    x = walk.ids.keep_whole(x, range(2, len(x.shape)), 'varies over space that is sampled')
    return walk.ids.value(output_shape(node), [f for f in x.factors if varying(f) == [1]])


@register_handler(*'mean sum amax amin var std logsumexp prod any all'.split())
def reduction(
    walk: Any, node: fx.Node, x: Value, dims: int | Sequence[int] | None = None, *args: Any,
    **kwargs: Any,
) -> Value:  # fmt: skip
    walk.elementwise_cost(node, 'pool', x)
    over = _dims(x, kwargs.get('dim', dims))
    x = walk.over_channels(node, x, over)
    return walk.ids.squeeze(x, over, len(output_shape(node)) == len(x.shape))


@register_handler('var_mean', 'std_mean')
def statistics(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> tuple[Value, ...]:
    one = reduction(walk, node, x, *args, **kwargs)
    return one, one


@register_handler('linalg_vector_norm', 'norm')
def vector_norm(
    walk: Any, node: fx.Node, x: Value, order: float = 2, dims: int | Sequence[int] | None = None,
    *args: Any, **kwargs: Any,
) -> Value:  # fmt: skip
    return reduction(walk, node, x, kwargs.get('dim', dims))


@register_handler('softmax', '_softmax', 'log_softmax')
def softmax(walk: Any, node: fx.Node, x: Value, dim: int, *args: Any, **kwargs: Any) -> Value:
    return walk.over_channels(node, x, [dim])


def _dims(x: Value, dims: int | Sequence[int] | None) -> list[int]:
    """Dimensions as an operator is given them; all, where it is given none."""
    if dims is None or (not isinstance(dims, int) and not dims):
        return list(range(len(x.shape)))
    return [dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims)]


@register_handler('glu')
def gated(walk: Any, node: fx.Node, x: Value, dim: int = -1) -> Value:
    """One half of the channels times the sigmoid of the other."""
    dim %= len(x.shape)
    half = x.shape[dim] // 2
    x = _tie_equal_parts(walk, x, dim, [half, half])
    out = walk.ids.take(x, dim, 0, half)
    walk.elementwise_cost(node, 'activation', out)
    return out


@register_handler(
    *'fft_rfft2 fft_irfft2 fft_fft2 fft_ifft2 fft_rfftn fft_irfftn fft_rfft fft_irfft'.split()
)
def fourier(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A transform along dimensions whose sizes may change."""
    shape = output_shape(node)
    given = kwargs.get('dim', args[1] if len(args) > 1 else None)
    last = [-2, -1] if '2' in operator_name(node) else [-1]
    dims = _dims(x, last if given is None else given)
    return Value(shape, walk.ids.keep_whole(x, dims, 'varies along what is transformed').factors)


@register_handler('view_as_complex', 'view_as_real')
def as_complex(walk: Any, node: fx.Node, x: Value) -> Value:
    """The last dimension holds the two parts of a number."""
    rank = len(x.shape)
    if len(output_shape(node)) > rank:
        return Value(output_shape(node), [f.reshape(*f.shape, 1) for f in x.factors])
    x = walk.ids.keep_whole(x, [rank - 1], 'the parts of a complex number')
    return Value(output_shape(node), [f.reshape(f.shape[:-1]) for f in x.factors])


@register_handler('roll', 'flip', 'cumsum', 'sort', 'topk', 'argmax', 'argmin', 'argsort', 'max')
def ordered(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Any:
    """The place of an element counts along some dimension."""
    if any(isinstance(arg, Value) for arg in args):  # the larger of two tensors
        return elementwise(walk, node, x, *args)
    name = operator_name(node)
    place = 1 if name in ('roll', 'topk') else 0  # behind the shifts, or the number
    default = {'sort': -1, 'argsort': -1, 'topk': -1}.get(name)
    given = kwargs.get('dim', kwargs.get('dims', args[place] if len(args) > place else default))
    if given is None or given == []:  # of the flattened tensor
        walk.ids.freeze_value(x, 'its order counts')
        return plain(node)
    dims = _dims(x, given)
    x = walk.ids.keep_whole(x, dims, 'its order counts')
    shape, factors = output_shape(node), x.factors
    if len(shape) < len(x.shape):
        factors = [factor.squeeze(tuple(dims)) for factor in factors]
    outs, one = node.meta['val'], Value(shape, factors)
    return (one,) * len(outs) if isinstance(outs, (tuple, list)) else one


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


@register_handler(
    *'view reshape _unsafe_view flatten unflatten squeeze unsqueeze reshape_as view_as'.split()
)
def reshape(walk: Any, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    shape = output_shape(node)
    out = walk.ids.reshape(x, shape)
    runs = [
        (before, after)
        for before, after in aligned_runs(x.shape, shape)
        if any(x.factor(d) is not None for d in before)
    ]
    walk.sizes(node, [(out, dim) for dim in range(len(shape))], runs)
    return out


@register_handler('narrow')
def narrow(walk: Any, node: fx.Node, x: Value, dim: int, start: int, length: int) -> Value:
    return slice_(walk, node, x, dim, start, start + length)


@register_handler('movedim', 'moveaxis')
def move(
    walk: Any, node: fx.Node, x: Value, source: int | Sequence[int], target: int | Sequence[int]
) -> Value:
    sources, targets = _dims(x, source), _dims(x, target)
    order = [dim for dim in range(len(x.shape)) if dim not in sources]
    for place, dim in sorted(zip(targets, sources, strict=True)):
        order.insert(place, dim)
    return walk.ids.permute(x, order, output_shape(node))


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
    out = spread(walk, align(x, len(output_shape(node))), output_shape(node))
    walk.sizes(node, [(out, dim) for dim in range(len(out.shape))])
    return out


@register_handler('repeat', 'tile')
def repeat(walk: Any, node: fx.Node, x: Value, counts: Sequence[int]) -> Value:
    shape = output_shape(node)
    x = align(x, len(shape))
    counts = [size // own for size, own in zip(shape, x.shape, strict=True)]
    copies = [
        np.tile(f, [n if f.shape[d] > 1 else 1 for d, n in enumerate(counts)]) for f in x.factors
    ]
    tiled = tuple(size if own > 1 else 1 for size, own in zip(shape, x.shape, strict=True))
    out = spread(walk, Value(tiled, copies), shape)
    alone = Value(shape, [f for f in out.factors if x.shape[varying(f)[0]] == 1])
    walk.sizes(node, [(alone, dim) for dim in range(len(shape))])
    return out


def spread(walk: Any, x: Value, shape: Sequence[int]) -> Value:
    """Copies along dimensions of size 1; as many as whatever they meet has, so they get ids."""
    grown = [d for d, (own, size) in enumerate(zip(x.shape, shape, strict=True)) if own < size]
    rank = len(shape)
    fresh = [
        walk.ids.fresh(shape[dim]).reshape([-1 if d == dim else 1 for d in range(rank)])
        for dim in grown
    ]
    return Value(tuple(shape), [*x.factors, *fresh])


@register_handler('repeat_interleave')
def repeat_interleave(
    walk: Any, node: fx.Node, x: Value, count: int | Value, dim: int | None = None, **kwargs: Any
) -> Value:
    if dim is None or isinstance(count, Value):
        walk.ids.freeze_value(x, 'repeated in a way that is not followed')
        return plain(node)
    shape, dim = output_shape(node), dim % len(x.shape)
    if x.shape[dim] == 1:
        return spread(walk, x, shape)
    copies = [np.repeat(f, count, dim) if f.shape[dim] > 1 else f for f in x.factors]
    return walk.ids.value(shape, copies)


@register_handler('unfold')
def windows(walk: Any, node: fx.Node, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows of a dimension, in one that is added behind."""
    dim %= len(x.shape)
    x = walk.ids.keep_whole(x, [dim], 'varies along what is cut into windows')
    return Value(output_shape(node), [f[..., None] for f in x.factors])


@register_handler('im2col')
def unfold(walk: Any, node: fx.Node, x: Value, kernel: Sequence[int], *args: Any) -> Value:
    """Every channel becomes one per position of the kernel."""
    x = walk.ids.keep_whole(x, [2, 3], 'varies over space that is unfolded')
    shape = output_shape(node)
    lines = [np.repeat(line, shape[1] // x.shape[1]) for line in _lines(walk, x, 1)]
    return walk.ids.value(shape, [line.reshape(1, -1, 1) for line in lines])


@register_handler('col2im')
def fold(walk: Any, node: fx.Node, x: Value, *args: Any) -> Value:
    """The positions of the kernel become one channel again."""
    shape = output_shape(node)
    x = walk.ids.keep_whole(x, [2], 'varies over space that is folded')
    lines = [walk.ids.tie(f.reshape(shape[1], -1), [1]) for f in _lines(walk, x, 1)]
    return walk.ids.value(shape, [line.reshape(1, -1, 1, 1) for line in lines])


@register_handler('pixel_shuffle')
def pixel_shuffle(walk: Any, node: fx.Node, x: Value, factor: int) -> Value:
    x = walk.ids.keep_whole(x, [2, 3], 'varies over space that is shuffled')
    lines = [walk.ids.tie(line.reshape(-1, factor**2), [1]) for line in _lines(walk, x, 1)]
    return walk.ids.value(output_shape(node), [line.reshape(1, -1, 1, 1) for line in lines])


@register_handler('pixel_unshuffle')
def pixel_unshuffle(walk: Any, node: fx.Node, x: Value, factor: int) -> Value:
    x = walk.ids.keep_whole(x, [2, 3], 'varies over space that is shuffled')
    lines = [np.repeat(line, factor**2) for line in _lines(walk, x, 1)]
    return walk.ids.value(output_shape(node), [line.reshape(1, -1, 1, 1) for line in lines])


@register_handler('channel_shuffle')
def channel_shuffle(walk: Any, node: fx.Node, x: Value, groups: int) -> Value:
    ids, (batch, channels, *space) = walk.ids, x.shape
    apart = ids.reshape(x, (batch, groups, channels // groups, *space))
    order = [0, 2, 1, *range(3, len(apart.shape))]
    swapped = ids.permute(apart, order, [apart.shape[d] for d in order])
    for line in _lines(walk, x, 1):  # every group keeps the same, as a view of two dimensions
        ids.tie(line.reshape(groups, -1), [0])
    return ids.reshape(swapped, x.shape)


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
    lengths = [shape[dim] for shape in shapes]
    by_size = operator_name(node).startswith('split')  # the sizes of unequal parts are supplied
    if not by_size or (isinstance(sizes, int) and len(set(lengths)) == 1):
        x = _tie_equal_parts(walk, x, dim, lengths)
    parts, start = [], 0
    for shape in shapes:
        parts.append(walk.ids.take(x, dim, start, start + shape[dim]))
        start += shape[dim]
    walk.sizes(node, [(part, dim) for part in parts])
    return tuple(parts)


@register_handler('unbind')
def unbind(walk: Any, node: fx.Node, x: Value, dim: int = 0) -> tuple[Value, ...]:
    dim %= len(x.shape)
    x = _tie_equal_parts(walk, x, dim, [1] * x.shape[dim])
    parts = [walk.ids.take(x, dim, i, i + 1) for i in range(x.shape[dim])]
    return tuple(walk.ids.squeeze(part, [dim]) for part in parts)


@register_handler('slice')
def slice_(
    walk: Any, node: fx.Node, x: Value, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> Value:  # fmt: skip
    dim %= len(x.shape)
    begin, stop, _ = slice(start, end).indices(x.shape[dim])
    out = walk.ids.take(x, dim, begin, stop, step)
    if out.shape != x.shape and x.factor(dim) is not None:
        walk.sliced(node, dim, begin, stop, step)
    return out


@register_handler('select')
def select(walk: Any, node: fx.Node, x: Value, dim: int, index: int) -> Value:
    dim, index = dim % len(x.shape), index % x.shape[dim]
    if x.factor(dim) is not None:
        walk.sliced(node, dim, index, index + 1, 1)
    return walk.ids.squeeze(walk.ids.take(x, dim, index, index + 1), [dim])


@register_handler('index')
def index(walk: Any, node: fx.Node, x: Value, places: Sequence[Value | None]) -> Value:
    """Elements looked up along some dimensions, those of a table of positions for example."""
    dims = [dim for dim, place in enumerate(places) if place is not None]
    for place in places:
        if place is not None:
            walk.ids.freeze_value(place, 'an index')
    if dims != list(range(dims[0], dims[-1] + 1)):
        walk.ids.freeze_value(x, 'indexed along dimensions that are apart')
        return plain(node)
    x = walk.ids.keep_whole(x, dims, 'looked up by index')
    shape = output_shape(node)
    after = len(x.shape) - dims[-1] - 1
    found = len(shape) - dims[0] - after
    return Value(
        shape,
        [f.reshape(*f.shape[: dims[0]], *[1] * found, *f.shape[dims[-1] + 1 :]) for f in x.factors],
    )


@register_handler('index_select')
def index_select(walk: Any, node: fx.Node, x: Value, dim: int, places: Value) -> Value:
    dim %= len(x.shape)
    return index(walk, node, x, [places if d == dim else None for d in range(dim + 1)])


@register_handler('embedding')
def embedding(walk: Any, node: fx.Node, table: Value, places: Value, *args: Any) -> Value:
    return index(walk, node, table, [places])


@register_handler('gather')
def gather(walk: Any, node: fx.Node, x: Value, dim: int, places: Value, *args: Any) -> Value:
    walk.ids.freeze_value(x, 'looked up by index')
    walk.ids.freeze_value(places, 'an index')
    return plain(node)


@register_handler(
    *'zeros ones full empty arange linspace eye scalar_tensor tensor rand randn'.split(),
    *'new_zeros new_ones new_full new_empty new_tensor rand_like randn_like bernoulli'.split(),
    *'meshgrid _assert_scalar sym_size sym_constrain_range_for_size'.split(),
)
def constant(walk: Any, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """Made anew, of fixed size."""
    return plain(node)


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


def _tie_equal_parts(walk: Any, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    """Parts of one size keep the same channels: Python goes on splitting by equal sizes."""
    factor = x.factor(dim)
    if factor is None:
        return x
    if len(set(sizes)) > 1:
        return walk.ids.keep_whole(x, [dim], f'split into unequal parts {list(sizes)}')
    parts = np.split(factor, np.cumsum(sizes)[:-1], axis=dim)
    for part in parts[1:]:
        walk.ids.unite(parts[0], part)
    return x
