"""Products of tensors, attention among them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from torch import fx

from ..ids import Value
from .table import Walker, register_handler

DIAGONAL = 'the diagonal of a product'
SCALE = 'its size is the scale of the attention'


@register_handler('einsum')
def einsum(
    walk: Walker, node: fx.Node, equation: str, operands: Sequence[Value], **kwargs: Any
) -> Value:
    """Any product of operands; dimensions are named by letters.

    Of more than two, PyTorch multiplies the first with the second, and so on (without opt_einsum).
    """
    terms, operands = _terms(equation), list(operands)
    while len(operands) > 2:
        first, second, *others = terms[:-1]
        kept = ''.join(sorted(set(first + second) & set(''.join([*others, terms[-1]])) - {'.'}))
        pair = f'{"..." if "..." in first + second else ""}{kept}'
        operands[:2] = [_contracted(walk, [first, second, pair], operands[:2], node)]
        terms[:2] = [pair]
    return _contracted(walk, terms, operands, node)


def _terms(equation: str) -> list[str]:
    """The letters of every operand, and of the result."""
    inputs, arrow, output = equation.replace(' ', '').partition('->')
    names = inputs.replace('.', '').replace(',', '')
    once = ''.join(sorted(letter for letter in set(names) if names.count(letter) == 1))
    dots = '...' if '...' in inputs else ''
    return [*inputs.split(','), output if arrow else dots + once]


def _contracted(
    walk: Walker, given: Sequence[str], operands: Sequence[Value], counted: fx.Node | None = None
) -> Value:
    *inputs, output = given
    spare = ''.join(letter for letter in string.ascii_letters if letter not in ''.join(given))
    terms: list[str] = []
    sizes: dict[str, int] = {}
    for term, x in zip(inputs, operands, strict=True):
        # dots stand for as many dimensions as have no letter; broadcasting counts them from the end
        hidden = len(x.shape) - len(term.replace('...', ''))
        terms.append(term.replace('...', spare[len(spare) - hidden :]))
        sizes |= {letter: size for letter, size in zip(terms[-1], x.shape, strict=True) if size > 1}
    names = ''.join(terms)
    dots = ''.join(letter for letter in spare if letter in names)
    output = output.replace('...', dots)
    letters = output + ''.join(sorted(set(names) - set(output)))
    aligned = [_by_letters(walk, x, term, letters) for x, term in zip(operands, terms, strict=True)]
    summed = range(len(output), len(letters))
    every = walk.ids.contract(aligned, tuple(sizes.get(letter, 1) for letter in letters), summed)
    result = walk.ids.squeeze(every, summed)
    if counted is not None:
        walk.cost(counted, 'matmul', every.all_dims)
        walk.elementwise_cost(counted, 'output', result)
    return result


def _by_letters(walk: Walker, x: Value, term: str, letters: str) -> Value:
    """A tensor with a dimension for every letter, of size 1 where it has none."""
    sizes = dict(zip(term, x.shape, strict=True))
    shape = tuple(sizes.get(letter, 1) for letter in letters)
    if len(sizes) < len(term):  # a diagonal
        walk.ids.freeze_value(x, DIAGONAL)
        return Value(shape)
    order = sorted(range(len(term)), key=lambda dim: letters.index(term[dim]))
    return walk.ids.reshape(walk.ids.permute(x, order, [x.shape[dim] for dim in order]), shape)


@register_handler('tensordot')
def tensordot(
    walk: Walker, node: fx.Node, a: Value, b: Value, dims_a: Sequence[int], dims_b: Sequence[int]
) -> Value:
    letters = iter(string.ascii_letters)
    first, second = ([next(letters) for _ in x.shape] for x in (a, b))
    for one, other in zip(dims_a, dims_b, strict=True):
        second[other] = first[one]
    shared = set(first) & set(second)
    kept = ''.join(letter for letter in [*first, *second] if letter not in shared)
    return einsum(walk, node, f'{"".join(first)},{"".join(second)}->{kept}', [a, b])


@register_handler('matmul', 'mm', 'bmm')
def product(walk: Walker, node: fx.Node, a: Value, b: Value) -> Value:
    return einsum(walk, node, _equation(a, b), [a, b])


@register_handler('mv', 'dot', 'vdot')
def vector_product(walk: Walker, node: fx.Node, a: Value, b: Value) -> Value:
    """Of a weight and what it is normalised by; torch's own counter does not count it either."""
    return _contracted(walk, _terms(_equation(a, b)), [a, b])


def _equation(a: Value, b: Value) -> str:
    return f'{"...ij" if len(a.shape) > 1 else "j"},{"...jk" if len(b.shape) > 1 else "j"}'


@register_handler('addmm', 'baddbmm')
def add_product(
    walk: Walker, node: fx.Node, added: Value, a: Value, b: Value, **kwargs: Any
) -> Value:
    if walk.are_layer([added, b]):  # GPT-2's linear layer
        walk.produced(node, b, 1, channels=-1)
    out = product(walk, node, a, b)
    return walk.ids.combine([out, added], out.shape)


@register_handler('scaled_dot_product_attention')
def attention(
    walk: Walker, node: fx.Node, query: Value, key: Value, value: Value, mask: Value | None = None,
    *args: Any, scale: float | None = None, enable_gqa: bool = False, **kwargs: Any,
) -> Value:  # fmt: skip
    if enable_gqa:
        return _grouped_attention(walk, node, query, key, value, mask, scale=scale)
    ids, last = walk.ids, [len(query.shape) - 1]
    if scale is None:
        query, key = (ids.keep_whole(ids.group_along(x, last), last, SCALE) for x in (query, key))
    scores = einsum(walk, node, '...qd,...kd->...qk', [query, key])
    if mask is not None:
        scores = ids.combine([scores, mask], scores.shape)
    return einsum(walk, node, '...qk,...kd->...qd', [scores, value])


def _grouped_attention(
    walk: Walker, node: fx.Node, query: Value, key: Value, value: Value, mask: Value | None,
    scale: float | None,
) -> Value:  # fmt: skip
    """Several heads of queries for each of keys, which get a dimension of one beside theirs."""
    ids, heads = walk.ids, key.shape[-3]
    each = query.shape[-3] // heads

    def split(x: Value, count: int) -> Value:
        shape = (*x.shape[:-3], x.shape[-3] // count, count, *x.shape[-2:])
        return ids.reshape(x, shape)

    if mask is not None and len(mask.shape) > 2:
        mask = split(mask, each if mask.shape[-3] > 1 else 1)
    out = attention(
        walk, node, split(query, each), split(key, 1), split(value, 1), mask, scale=scale
    )
    return ids.reshape(out, (*query.shape[:-1], value.shape[-1]))
