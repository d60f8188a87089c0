"""Products of tensors, attention among them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from torch import fx

from ..ids import Value, align
from ..trace import output_shape
from .table import Walker, register_handler


@register_handler('matmul', 'mm', 'bmm')
def product(walk: Walker, node: fx.Node, a: Value, b: Value) -> Value:
    return walk.ids.reshape(matrix_product(walk, node, a, b), output_shape(node))


def matrix_product(walk: Walker, node: fx.Node, a: Value, b: Value) -> Value:
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
    walk.cost(node, 'matmul', every.all_dims)
    return walk.ids.squeeze(every, [rank - 1])


@register_handler('addmm', 'baddbmm')
def add_product(
    walk: Walker, node: fx.Node, added: Value, a: Value, b: Value, **kwargs: Any
) -> Value:
    out = product(walk, node, a, b)
    return walk.ids.combine([out, added], out.shape)


@register_handler('einsum')
def einsum(
    walk: Walker, node: fx.Node, equation: str, operands: Sequence[Value], **kwargs: Any
) -> Value:
    """Any product of operands; dimensions are named by letters."""
    inputs, _, output = equation.replace(' ', '').partition('->')
    spare = [c for c in string.ascii_letters if c not in equation]
    terms = inputs.split(',')
    # how many dimensions the dots of each term stand for; those of the widest have all letters
    ranks = [len(x.shape) for x in operands]
    hidden = [n - len(term.replace('...', '')) for term, n in zip(terms, ranks, strict=True)]
    dots = ''.join(spare[: max(hidden)])
    terms = [
        term.replace('...', dots[len(dots) - n :]) for term, n in zip(terms, hidden, strict=True)
    ]
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
    walk.cost(node, 'matmul', every.all_dims)
    return walk.ids.squeeze(every, summed)


def _by_letters(walk: Walker, x: Value, term: str, letters: str) -> Value:
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
    walk: Walker, node: fx.Node, query: Value, key: Value, value: Value, mask: Value | None = None,
    *args: Any, scale: float | None = None, **kwargs: Any,
) -> Value:  # fmt: skip
    ids, rank = walk.ids, len(query.shape)
    if scale is None:
        reason, last = 'its size is the scale of the attention', [rank - 1]
        query, key = (ids.keep_whole(ids.group_along(x, last), last, reason) for x in (query, key))
    order = [*range(rank - 2), rank - 1, rank - 2]
    keys = ids.permute(key, order, [key.shape[d] for d in order])
    scores = matrix_product(walk, node, query, keys)
    if mask is not None:
        scores = ids.combine([scores, mask], scores.shape)
    return matrix_product(walk, node, scores, value)
