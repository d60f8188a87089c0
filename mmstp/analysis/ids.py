"""Channel ids carried by tensors, and the few operations on them that all operators come down to.

``qkv(x).reshape(b, n, 3, 4, 8)`` of 3 × 4 heads × 8 channels, in ids of one factor::

    after qkv       (b, n, 96)          0…95 along dimension 2
    after reshape   (b, n, 3, 4, 8)     0…95 along dimensions 2, 3 and 4
    q @ k           sums over the 8:    tied along dimension 4; 0, 8, 16, 24 remain, four heads
    q, k, v         slices along the 3: their heads are tied; dropping head 1 drops 24 rows of qkv

Every position of a parameter's dimension starts with an id of its own. Two ids that must be kept or
dropped together are united; what remains separate at the end is separately prunable. A tensor's
value is a list of *factors*: integer arrays of ids with the tensor's rank and size 1 along the
dimensions over which the ids do not vary. The factors of one tensor vary over disjoint dimensions.
A dimension without a factor (batch, space, the network's input) holds nothing that can be pruned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from .union_find import Ids, UnionFind, varying


def plain(node: fx.Node) -> Any:
    """The value of a tensor (or of several) of which nothing can be pruned."""
    value = node.meta.get('val')
    if isinstance(value, (tuple, list)):
        return tuple(Value(tuple(getattr(part, 'shape', ()))) for part in value)
    return Value(tuple(getattr(value, 'shape', ())))


@dataclass
class Value:
    """What is known of one tensor: its shape and its factors."""

    shape: tuple[int, ...]
    factors: list[Ids] = field(default_factory=list)

    def factor(self, dim: int) -> Ids | None:
        """The factor that varies along ``dim``, if there is one."""
        return next((f for f in self.factors if f.shape[dim] > 1), None)


class ChannelIds(UnionFind):
    """A union-find over channel ids, and the operations on tensors of them.

    Attributes:
        frozen: Ids that have to stay, with the reasons.
        wholes: Ids of the wholes of which products are made: heads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen: list[tuple[Ids, str]] = []
        self.wholes: list[Ids] = []

    def freeze(self, ids: Ids, reason: str) -> None:
        """These channels have to stay."""
        self.frozen.append((ids, reason))

    def freeze_value(self, value: Value, reason: str) -> None:
        """Freezes all that a tensor holds."""
        for factor in value.factors:
            self.freeze(factor, reason)

    def keep_whole(self, value: Value, dims: Iterable[int], reason: str) -> Value:
        """Nothing is dropped along ``dims``; what a factor holds along others stays free.

        A factor of heads and their width, say, is tied along the width, so that whole heads can
        still go. One that varies along ``dims`` alone has to stay.
        """
        chosen, left = set(dims), []
        for factor in value.factors:
            along = chosen.intersection(varying(factor))
            if along and along == set(varying(factor)):
                self.freeze(factor, reason)
            else:
                left.append(self.tie(factor, along))
        return Value(value.shape, left)

    def group_along(self, value: Value, dims: Iterable[int]) -> Value:
        """Ties a factor along ``dims`` where it varies along others too.

        What an operator does over ``dims`` (a contraction, a normalisation) it does for each
        position of the others on its own: whole positions of those can go.
        """
        chosen, factors = set(dims), []
        for factor in value.factors:
            along = chosen.intersection(varying(factor))
            if set(varying(factor)) - along:
                factor = self.tie(factor, along)
            factors.append(factor)
        return Value(value.shape, factors)

    def value(self, shape: Sequence[int], factors: Iterable[Ids]) -> Value:
        """A tensor's value from factors that may have come to overlap or to be constant."""
        factors = list(factors)
        for i, factor in enumerate(factors):
            for other in factors[:i]:
                if set(varying(factor)).intersection(varying(other)):
                    self.unite(factor, other)
        result = Value(tuple(shape))
        for factor in map(self.compress, factors):
            dims = varying(factor)
            if not dims:
                self.freeze(factor, 'a dimension of which nothing can be dropped on its own')
            elif not any(result.factor(dim) is not None for dim in dims):
                result.factors.append(factor)
        return result

    def combine(self, operands: Sequence[Value], shape: Sequence[int]) -> Value:
        """An element-wise operator: what meets is tied.

        Along a dimension that meets one without ids (of which nothing may be dropped), nothing
        may be dropped either. Where ids over several dimensions (heads and their width) meet ids
        over some of these, the first (whole heads) stays free.
        """
        rank = len(shape)
        aligned = [align(operand, rank) for operand in operands]
        aligned = [
            self._first_free(one, aligned[:i] + aligned[i + 1 :]) for i, one in enumerate(aligned)
        ]
        settled = False
        while not settled:  # what is kept whole for one operand's sake may meet another's ids
            settled = True
            for i, one in enumerate(aligned):
                met = {
                    dim
                    for j, other in enumerate(aligned)
                    for dim in range(rank)
                    if i != j and other.shape[dim] > 1 and other.factor(dim) is None
                }
                whole = self.keep_whole(one, met, 'meets a tensor of fixed size')
                settled &= [f.shape for f in whole.factors] == [f.shape for f in one.factors]
                aligned[i] = whole
        for i, one in enumerate(aligned):
            for factor in one.factors:
                for other in aligned[i + 1 :]:
                    for dim in varying(factor):
                        if (partner := other.factor(dim)) is not None:
                            self.unite(factor, partner)
        return self.value(shape, [factor for one in aligned for factor in one.factors])

    def _first_free(self, value: Value, others: Sequence[Value]) -> Value:
        factors = []
        for factor in value.factors:
            dims = varying(factor)
            met = [set(varying(f)) for other in others for f in other.factors]
            fewer = any(part < set(dims) for part in met if part)
            factors.append(self.tie(factor, dims[1:]) if fewer else factor)
        return Value(value.shape, factors)

    def contract(
        self, operands: Sequence[Value], shape: Sequence[int], dims: Iterable[int]
    ) -> Value:
        """A product summed over ``dims``; operands and result have all dimensions of ``shape``.

        Args:
            operands: Aligned: of the rank of ``shape``, of size 1 along what they do not have.
            shape: Sizes of all dimensions, those summed over included.
            dims: Those summed over. The result still has them, for `squeeze`.
        """
        dims = list(dims)
        grouped = [self.group_along(operand, dims) for operand in operands]
        for before, after in zip(operands, grouped, strict=True):
            for factor, whole in zip(before.factors, after.factors, strict=True):
                if whole.shape != factor.shape:
                    self.wholes.append(whole)
        return self.combine(grouped, shape)

    def squeeze(self, value: Value, dims: Iterable[int], keepdim: bool = False) -> Value:
        """Takes dimensions away, and the factors that vary along them alone."""
        gone = set(dims)
        value = self.group_along(value, gone)
        left = [f for f in value.factors if not gone.intersection(varying(f))]
        shape = [1 if d in gone else size for d, size in enumerate(value.shape)]
        if keepdim:
            return Value(tuple(shape), left)
        return Value(
            tuple(size for d, size in enumerate(shape) if d not in gone),
            [factor.squeeze(tuple(gone)) for factor in left],
        )

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """A view of other sizes; ids follow their elements.

        Input and output dimensions fall into runs of equal product; a factor is spread out only
        within the runs that it touches.
        """
        runs = aligned_runs(value.shape, tuple(shape))
        factors = []
        for factor in value.factors:
            before, after = list(factor.shape), [1] * len(shape)
            for old, new in runs:
                if any(factor.shape[dim] > 1 for dim in old):
                    for dim in old:
                        before[dim] = value.shape[dim]
                    for dim in new:
                        after[dim] = shape[dim]
            factors.append(np.broadcast_to(factor, before).reshape(after))
        # of independent ids that come to lie along one dimension (heads and their width) the
        # outer stay free
        order = sorted(range(len(factors)), key=lambda i: varying(value.factors[i])[0])
        kept: list[Ids] = []
        for factor in (factors[i] for i in order):
            if any(set(varying(factor)).intersection(varying(other)) for other in kept):
                self.freeze(factor, 'flattened together with others')
            else:
                kept.append(factor)
        return self.value(shape, kept)

    def permute(self, value: Value, order: Sequence[int], shape: Sequence[int]) -> Value:
        """Dimensions in another order."""
        return Value(tuple(shape), [factor.transpose(order) for factor in value.factors])

    def concatenate(self, values: Sequence[Value], dim: int, shape: Sequence[int]) -> Value:
        """Concatenation: ids along ``dim`` one behind the other, elsewhere tied.

        What is concatenated for every position of other dimensions (the halves of every head)
        still varies over those, unless one of the tensors has no ids to vary.
        """
        values = [self.value(value.shape, value.factors) for value in values]
        joined = [value.factor(dim) for value in values]
        along: list[Ids] = []
        if any(factor is not None for factor in joined):
            every = all(factor is not None for factor in joined)
            for value, factor in zip(values, joined, strict=True):
                if factor is None:
                    factor = self.fresh(value.shape[dim]).reshape(_along(len(shape), dim))
                    self.freeze(factor, 'concatenated from a tensor of fixed size')
                others = [d for d in varying(factor) if d != dim]
                along.append(factor if every else self.tie(factor, others))
            across = {d for factor in along for d in varying(factor) if d != dim}
            along = [
                np.broadcast_to(
                    factor,
                    [shape[d] if d in across else n for d, n in enumerate(factor.shape)],
                )
                for factor in along
            ]
        rest = [
            Value(
                tuple(1 if d == dim else size for d, size in enumerate(value.shape)),
                [factor for factor in value.factors if factor.shape[dim] == 1],
            )
            for value in values
        ]
        elsewhere = self.combine(rest, [1 if d == dim else size for d, size in enumerate(shape)])
        factors = [*elsewhere.factors, *([np.concatenate(along, axis=dim)] if along else [])]
        return self.value(shape, factors)

    def take(self, value: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
        """A slice along one dimension."""
        shape = list(value.shape)
        shape[dim] = len(range(start, stop, step))
        factors = [
            factor[(slice(None),) * dim + (slice(start, stop, step),)]
            if factor.shape[dim] > 1
            else factor
            for factor in value.factors
        ]
        return self.value(shape, factors)

    def rectangular(self, values: Iterable[Value]) -> None:
        """Ties factors that vary over several dimensions until each varies over one.

        A tensor can be narrowed along its dimensions only. The largest dimension stays free.
        """
        pending = [factor for value in values for factor in value.factors]
        while pending:
            several = []
            for factor in pending:
                factor = self.compress(factor)
                dims = varying(factor)
                if len(dims) > 1:
                    largest = max(dims, key=lambda dim: factor.shape[dim])
                    self.tie(factor, [dim for dim in dims if dim != largest])
                    several.append(factor)
            # a tie made for one factor can couple another that was rectangular before
            pending = pending if several else []


def _along(rank: int, dim: int) -> list[int]:
    return [-1 if d == dim else 1 for d in range(rank)]


def align(value: Value, rank: int) -> Value:
    """Broadcasting adds dimensions in front."""
    lead = (1,) * (rank - len(value.shape))
    return Value(lead + value.shape, [f.reshape(lead + f.shape) for f in value.factors])


def aligned_runs(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Splits the dimensions of two shapes of one size into the smallest runs of equal product."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(a), j + len(b)
        while (left := math.prod(old[d] for d in a)) != (right := math.prod(new[d] for d in b)):
            if left < right:
                a.append(i)
                i += 1
            else:
                b.append(j)
                j += 1
        runs.append((a, b))
    return runs
