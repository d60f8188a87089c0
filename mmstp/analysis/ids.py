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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from torch import fx

from .records import aligned_runs
from .union_find import Ids, UnionFind, overlap, varying

FIXED_SIZE = 'meets a tensor of fixed size'


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

    def ids_along(self, dim: int) -> Ids | None:
        """The ids along ``dim``; what else their factor varies over is tied to it in the end."""
        factor = self.factor(dim)
        if factor is None:
            return None
        return factor[tuple(slice(None) if d == dim else 0 for d in range(factor.ndim))]

    @property
    def all_dims(self) -> list[tuple[Value, int]]:
        """Every dimension, as handlers name those that cost or are given sizes."""
        return [(self, dim) for dim in range(len(self.shape))]


class ChannelIds(UnionFind):
    """A union-find over channel ids, and the operations on tensors of them.

    Attributes:
        frozen: Ids that have to stay, with the reasons.
        wholes: Ids of the wholes of which products are made: heads.
        constants: Ids of constants of one value, until they are tied to channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen: list[tuple[Ids, str]] = []
        self.wholes: list[Ids] = []
        self.constants: list[Ids] = []

    def freeze(self, ids: Ids, reason: str) -> None:
        """These channels have to stay."""
        self.frozen.append((ids, reason))

    def of_constants(self, value: Value) -> bool:
        """Whether a tensor holds ids, and only such as constants of one value alone hold."""
        known = np.concatenate([np.zeros(0, np.int64), *(x.reshape(-1) for x in self.constants)])
        inside = [np.isin(self.find(f), self.find(known)).all() for f in value.factors]
        return bool(inside) and all(inside)

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
            if varying(factor) and chosen.issuperset(varying(factor)):
                self.freeze(factor, reason)
            else:
                left.append(self.tie(factor, chosen.intersection(varying(factor))))
        return Value(value.shape, left)

    def group_along(self, value: Value, dims: Iterable[int]) -> Value:
        """Ties a factor along ``dims`` where it varies along others too.

        What an operator does over ``dims`` (a contraction, a normalisation) it does for each
        position of the others on its own: whole positions of those can go.
        """
        chosen = set(dims)
        alone = [chosen.issuperset(varying(factor)) for factor in value.factors]
        factors = [
            factor if whole else self.tie(factor, chosen.intersection(varying(factor)))
            for factor, whole in zip(value.factors, alone, strict=True)
        ]
        return Value(value.shape, factors)

    def value(self, shape: Sequence[int], factors: Iterable[Ids]) -> Value:
        """A tensor's value from factors that may have come to overlap or to be constant."""
        factors = list(factors)
        for first, second in combinations(factors, 2):
            if overlap(first, second):
                self.unite(first, second)
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
        aligned = [align(operand, len(shape)) for operand in operands]
        along = [set(varying(factor)) for one in aligned for factor in one.factors]
        for i, one in enumerate(aligned):
            factors = []
            for factor in one.factors:
                meets_fewer = any(dims and dims < set(varying(factor)) for dims in along)
                factors.append(self.tie(factor, varying(factor)[1:]) if meets_fewer else factor)
            aligned[i] = Value(one.shape, factors)
        settled = False
        while not settled:  # what is kept whole for one operand's sake may meet another's ids
            settled = True
            for i, one in enumerate(aligned):
                fixed = {
                    dim
                    for other in aligned
                    for dim, size in enumerate(other.shape)
                    if size > 1 and other.factor(dim) is None
                }
                aligned[i] = self.keep_whole(one, fixed, FIXED_SIZE)
                settled &= [f.shape for f in aligned[i].factors] == [f.shape for f in one.factors]
        return self.value(shape, [factor for one in aligned for factor in one.factors])

    def contract(
        self, operands: Sequence[Value], shape: Sequence[int], dims: Iterable[int]
    ) -> Value:
        """A product summed over ``dims``; operands and result have all dimensions of ``shape``.

        Operands have size 1 along dimensions that are not theirs. The result still has those
        summed over, for `squeeze`.
        """
        dims = list(dims)
        grouped = [self.group_along(operand, dims) for operand in operands]
        for before, after in zip(operands, grouped, strict=True):
            pairs = zip(before.factors, after.factors, strict=True)
            self.wholes += [whole for factor, whole in pairs if whole.shape != factor.shape]
        return self.combine(grouped, shape)

    def squeeze(self, value: Value, dims: Iterable[int], keepdim: bool = False) -> Value:
        """Takes dimensions away, and the factors that vary along them alone."""
        gone = set(dims)
        left = [f for f in self.group_along(value, gone).factors if gone.isdisjoint(varying(f))]
        if keepdim:
            return Value(tuple(1 if d in gone else n for d, n in enumerate(value.shape)), left)
        shape = tuple(size for d, size in enumerate(value.shape) if d not in gone)
        return Value(shape, [factor.squeeze(tuple(gone)) for factor in left])

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """A view of other sizes; ids follow their elements.

        Input and output dimensions fall into runs of equal product; a factor is spread out only
        within the runs that it touches.
        """
        runs = aligned_runs(value.shape, tuple(shape))
        kept: list[Ids] = []
        for factor in sorted(value.factors, key=varying):
            before, after = list(factor.shape), [1] * len(shape)
            for old, new in runs:
                if any(factor.shape[dim] > 1 for dim in old):
                    for dim in old:
                        before[dim] = value.shape[dim]
                    for dim in new:
                        after[dim] = shape[dim]
            factor = np.broadcast_to(factor, before).reshape(after)
            # of independent ids that come to lie along one dimension (heads and their width) the
            # outer stay free
            if any(overlap(factor, other) for other in kept):
                self.freeze(factor, 'flattened together with others')
            else:
                kept.append(factor)
        return self.value(shape, kept)

    def permute(self, value: Value, order: Sequence[int], shape: Sequence[int]) -> Value:
        """Dimensions in another order."""
        return Value(tuple(shape), [factor.transpose(order) for factor in value.factors])

    def concatenate(self, values: Sequence[Value], dim: int, shape: Sequence[int]) -> Value:
        """Concatenation: ids along ``dim`` one behind the other, elsewhere tied.

        What is concatenated for every position of other dimensions (halves of heads) still varies
        over those, unless one of the tensors has no ids to vary.
        """
        values = [self.value(value.shape, value.factors) for value in values]
        joined = [value.factor(dim) for value in values]
        along: list[Ids] = []
        if any(factor is not None for factor in joined):
            every = all(factor is not None for factor in joined)
            for value, factor in zip(values, joined, strict=True):
                if factor is None:
                    factor = self.fresh(value.shape[dim]).reshape(one_dim(len(shape), dim))
                    self.freeze(factor, 'concatenated from a tensor of fixed size')
                others = [d for d in varying(factor) if d != dim]
                along.append(factor if every else self.tie(factor, others))
            around = np.broadcast_shapes(*(_with_size(f.shape, dim, 1) for f in along))
            along = [np.broadcast_to(f, _with_size(around, dim, f.shape[dim])) for f in along]
        around_dim = ([f for f in v.factors if f.shape[dim] == 1] for v in values)
        rest = [
            Value(_with_size(v.shape, dim, 1), f) for v, f in zip(values, around_dim, strict=True)
        ]
        elsewhere = self.combine(rest, _with_size(shape, dim, 1))
        joint = [np.concatenate(along, axis=dim)] if along else []
        return self.value(shape, [*elsewhere.factors, *joint])

    def take(self, value: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
        """A slice along one dimension."""
        places = np.arange(start, stop, step)
        factors = [f.take(places, axis=dim) if f.shape[dim] > 1 else f for f in value.factors]
        return self.value(_with_size(value.shape, dim, len(places)), factors)

    def unite_parts(self, factor: Ids, dim: int, count: int) -> None:
        """Ties equal parts of a dimension to each other."""
        first, *others = np.split(factor, count, axis=dim)
        for part in others:
            self.unite(first, part)

    def rectangular(self, values: Iterable[Value]) -> None:
        """Ties factors that vary over several dimensions until each varies over one.

        A tensor can be narrowed along its dimensions only. The largest dimension stays free.
        """
        factors = [factor for value in values for factor in value.factors]
        tied = True
        while tied:  # a tie made for one factor can couple another that was rectangular before
            tied = False
            for factor in map(self.compress, factors):
                dims = varying(factor)
                if len(dims) > 1:
                    largest = max(dims, key=factor.shape.__getitem__)
                    self.tie(factor, [dim for dim in dims if dim != largest])
                    tied = True


def one_dim(rank: int, dim: int, size: int = -1) -> tuple[int, ...]:
    """The shape of what varies along one of ``rank`` dimensions alone."""
    return _with_size((1,) * rank, dim, size)


def _with_size(shape: Sequence[int], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def align(value: Value, rank: int) -> Value:
    """Broadcasting adds dimensions in front."""
    lead = (1,) * (rank - len(value.shape))
    return Value(lead + value.shape, [f.reshape(lead + f.shape) for f in value.factors])
