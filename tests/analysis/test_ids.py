"""Channel ids through shape operators, against numpy on the ids of every single element."""

import itertools
import random

import numpy as np
import pytest

from mmstp.analysis.ids import FIXED_SIZE, ChannelIds, Value


class Oracle:
    """A tensor's value next to arrays of full shape that hold the id of every element.

    The arrays go through numpy's own operations. Wherever the walk compresses, ties or drops, the
    ids that it gives for an element have to be those of the arrays, up to what was united.
    """

    def __init__(self, ids, shape, *dims):
        """Fresh ids along each of ``dims``; a tuple of dimensions gets one id per position."""
        factors = []
        for along in dims:
            along = (along,) if isinstance(along, int) else along
            own = [size if d in along else 1 for d, size in enumerate(shape)]
            factors.append(ids.fresh(int(np.prod(own))).reshape(own))
        self.ids = ids
        self.value = Value(tuple(shape), factors)
        self.arrays = [np.broadcast_to(factor, shape) for factor in factors]

    def apply(self, value, operation):
        """The value after an operator, and numpy's version of that operator."""
        self.value = value
        self.arrays = [operation(array) for array in self.arrays]
        self.check()

    def check(self):
        assert all(array.shape == self.value.shape for array in self.arrays)
        assert _owners(self.ids, self.value.factors, self.value.shape) == _owners(
            self.ids, self.arrays, self.value.shape
        )
        dims = [d for f in self.value.factors for d, n in enumerate(f.shape) if n > 1]
        assert len(dims) == len(set(dims)), 'factors vary over disjoint dimensions'

    def classes(self):
        """How many of the ids can still be dropped on their own."""
        roots = {int(root) for array in self.arrays for root in np.unique(self.ids.find(array))}
        return len(roots - _frozen(self.ids))


def _frozen(ids):
    return {int(root) for array, _ in ids.frozen for root in np.unique(ids.find(array))}


def _owners(ids, arrays, shape):
    """For every element the free ids that it hangs on."""
    frozen = _frozen(ids)
    full = [np.broadcast_to(ids.find(array), shape).reshape(-1).tolist() for array in arrays]
    return [frozenset(f[i] for f in full) - frozen for i in range(int(np.prod(shape)))]


@pytest.fixture
def ids():
    return ChannelIds()


# --- union-find -----------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(5))
def test_union_find_against_sets(seed, ids):
    rng = random.Random(seed)
    numbers = ids.fresh(60)
    sets = [{i} for i in range(60)]
    for _ in range(6):
        pairs = [(rng.randrange(60), rng.randrange(60)) for _ in range(5)]
        first, second = zip(*pairs, strict=True)
        ids.unite(np.array(first), np.array(second))
        for a, b in pairs:
            joined = next(s for s in sets if a in s) | next(s for s in sets if b in s)
            sets = [s for s in sets if not s & joined] + [joined]
        roots = ids.find(numbers)
        assert len(set(roots.tolist())) == len(sets)
        assert all(len({int(roots[i]) for i in s}) == 1 for s in sets)


def test_fresh_ids_are_new(ids):
    first, second = ids.fresh(3), ids.fresh(4)
    assert len(ids) == 7
    assert not set(first) & set(second)
    assert (ids.find(first) == first).all()


def test_tied_along_a_dimension(ids):
    factor = ids.fresh(12).reshape(3, 4)
    tied = ids.tie(factor, [0])
    assert tied.shape == (1, 4)
    roots = ids.find(factor)
    assert (roots == roots[0]).all()
    assert len(np.unique(roots)) == 4


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('shape', 'dims', 'new'),
    [
        ((2, 12, 5), [1], (2, 3, 4, 5)),
        ((2, 3, 4, 5), [1], (2, 12, 5)),
        ((2, 3, 4, 5), [2], (2, 12, 5)),
        ((2, 3, 4, 5), [(1, 2)], (2, 12, 5)),
        ((2, 12, 2, 3), [1], (2, 72)),
        ((2, 72), [1], (2, 12, 6)),
        ((2, 12, 5), [1], (24, 5)),
        ((12, 5), [0, 1], (3, 4, 5)),
        ((12, 6), [0, 1], (4, 3, 2, 3)),
        ((2, 6, 4), [1], (2, 4, 6)),
        ((2, 1, 6), [2], (2, 6)),
        ((6,), [0], (1, 6, 1, 1)),
        ((4, 6), [0], (24, 1)),
    ],
)
def test_reshape_is_numpy_s(shape, dims, new, ids):
    oracle = Oracle(ids, shape, *dims)
    before = oracle.classes()
    oracle.apply(ids.reshape(oracle.value, new), lambda array: array.reshape(new))
    assert oracle.classes() == before  # nothing is tied by looking at it another way


def test_of_two_factors_in_one_dimension_the_outer_stays_free(ids):
    """Rows and columns that are numbered through: whole rows can go."""
    oracle = Oracle(ids, (4, 6), 0, 1)
    rows, columns = oracle.value.factors
    flat = ids.reshape(oracle.value, (24,))
    assert [f.tolist() for f in flat.factors] == [np.repeat(ids.find(rows[:, 0]), 6).tolist()]
    assert oracle.classes() == 4
    assert _frozen(ids) == set(ids.find(columns[0]).tolist())


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_permute_is_numpy_s(order, ids):
    oracle = Oracle(ids, (2, 3, 4), 1, 2)
    shape = tuple(oracle.value.shape[dim] for dim in order)
    oracle.apply(ids.permute(oracle.value, order, shape), lambda array: array.transpose(order))
    assert oracle.classes() == 7


@pytest.mark.parametrize(
    ('dim', 'cut'), [(1, slice(2, 7)), (1, slice(1, 8, 3)), (2, slice(0, 2)), (0, slice(1, 2))]
)
def test_slices_are_numpy_s(dim, cut, ids):
    oracle = Oracle(ids, (3, 8, 4), 1)
    start, stop, step = cut.indices(oracle.value.shape[dim])
    where = (slice(None),) * dim + (cut,)
    oracle.apply(ids.take(oracle.value, dim, start, stop, step), lambda array: array[where])
    assert oracle.classes() == len(np.unique(oracle.arrays[0]))


@pytest.mark.parametrize(
    ('dim', 'channels', 'classes'), [(1, (4, 6, 2), 12), (0, (5, 5, 5), 5), (2, (5, 5, 5), 5)]
)
def test_concatenation_is_numpy_s(dim, channels, classes, ids):
    """Along the channels one behind the other; elsewhere the channels meet and are tied."""
    parts = [Oracle(ids, (2, count, 3), 1) for count in channels]
    arrays = [oracle.arrays[0] for oracle in parts]
    shape = np.concatenate(arrays, dim).shape
    whole = parts[0]
    whole.apply(
        ids.concatenate([oracle.value for oracle in parts], dim, shape),
        lambda _: np.concatenate(arrays, dim),
    )
    assert whole.classes() == classes


def test_what_is_concatenated_from_a_fixed_tensor_stays(ids):
    free, fixed = Oracle(ids, (2, 4), 1), Value((2, 3))
    out = ids.concatenate([fixed, free.value], 1, (2, 7))
    (factor,) = out.factors
    assert np.array_equal(ids.find(factor)[0, 3:], ids.find(free.arrays[0])[0])
    assert set(ids.find(factor)[0, :3].tolist()) <= _frozen(ids)
    assert free.classes() == 4


@pytest.mark.parametrize('seed', range(30))
def test_any_sequence_of_operators(seed, ids):
    """Reshapes, permutations, slices and concatenations at random, one after the other."""
    rng = random.Random(seed)
    oracle = Oracle(ids, (2, 12, 4), *rng.choice([[1], [1, 2], [(1, 2)], [0, 1]]))
    for _ in range(6):
        value, shape = oracle.value, oracle.value.shape
        kind = rng.choice(['reshape', 'permute', 'slice', 'concatenate'])
        dim = rng.randrange(len(shape))
        if kind == 'reshape':
            new = _any_shape(rng, int(np.prod(shape)))
            oracle.apply(ids.reshape(value, new), lambda array, new=new: array.reshape(new))
        elif kind == 'permute':
            order = rng.sample(range(len(shape)), len(shape))
            oracle.apply(
                ids.permute(value, order, [shape[d] for d in order]),
                lambda array, order=order: array.transpose(order),
            )
        elif kind == 'slice' and shape[dim] > 3:
            where = (slice(None),) * dim + (slice(1, shape[dim] - 1),)
            oracle.apply(
                ids.take(value, dim, 1, shape[dim] - 1),
                lambda array, where=where: array[where],
            )
        elif kind == 'concatenate' and np.prod(shape) < 400:
            new = tuple(2 * n if d == dim else n for d, n in enumerate(shape))
            oracle.apply(
                ids.concatenate([value, value], dim, new),
                lambda array, dim=dim: np.concatenate([array, array], dim),
            )


def _any_shape(rng, size):
    shape = []
    while size > 1 and len(shape) < 4:
        divisors = [d for d in range(2, size + 1) if size % d == 0]
        shape.append(rng.choice(divisors))
        size //= shape[-1]
    return tuple([*shape, size] if size > 1 else shape) or (1,)


# --- element by element ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('first', 'second', 'classes'),
    [
        (((2, 8, 3), [1]), ((2, 8, 3), [1]), 8),  # tied one by one
        (((2, 8, 3), [1]), ((8, 1), [0]), 8),  # a bias, broadcast from behind
        (((2, 8, 1), [1]), ((1, 1, 4), [2]), 8 + 4),  # they do not meet
        (((2, 8, 3), [1]), ((1, 1, 3), [2]), 8),  # the three meet what does not vary
        (((2, 8, 3), [1]), ((1, 1, 1), []), 8),  # a number for all
        (((2, 8, 3), [1]), ((2, 8, 3), []), 0),  # and so do these
        (((2, 6, 1), [1]), ((2, 6, 4), [(1, 2)]), 6),  # each of many tied to one
    ],
)
def test_combine_against_numpy_s_broadcasting(first, second, classes, ids):
    one, other = (Oracle(ids, shape, *dims) for shape, dims in (first, second))
    shape = np.broadcast_shapes(one.value.shape, other.value.shape)
    out = ids.combine([one.value, other.value], shape)
    arrays = [np.broadcast_to(array, shape) for array in one.arrays + other.arrays]
    assert _owners(ids, out.factors, shape) == _owners(ids, arrays, shape)
    frozen = _frozen(ids)
    roots = {int(r) for array in arrays for r in np.unique(ids.find(array))} - frozen
    assert len(roots) == classes


def test_combine_freezes_what_meets_a_fixed_tensor(ids):
    one = Oracle(ids, (2, 8, 3), 1)
    ids.combine([one.value, Value((8, 1))], (2, 8, 3))
    assert [reason for _, reason in ids.frozen] == [FIXED_SIZE]
    assert one.classes() == 0


# --- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize('keepdim', [False, True])
def test_squeezing_drops_what_varies_along_it_alone(keepdim, ids):
    """The ids of the others are numpy's; those of the dimensions that go are left in peace."""
    oracle = Oracle(ids, (2, 6, 4, 5), 1, 3)
    shape = (2, 6, 1, 1) if keepdim else (2, 6)
    out = ids.squeeze(oracle.value, [2, 3], keepdim)
    assert out.shape == shape
    (factor,) = out.factors
    assert np.array_equal(
        np.broadcast_to(factor, shape).reshape(2, 6), oracle.arrays[0][:, :, 0, 0]
    )
    assert oracle.classes() == 6 + 5


def test_squeezing_ties_what_varies_along_others_too(ids):
    """Heads and their width, squeezed along the width: whole heads can go."""
    oracle = Oracle(ids, (2, 4, 3, 5), (1, 2))
    (factor,) = ids.squeeze(oracle.value, [2]).factors
    assert factor.shape == (1, 4, 1)
    assert oracle.classes() == 4


@pytest.mark.parametrize(
    ('dims', 'along', 'classes'),
    [
        ([(1, 2)], [2], 4),  # heads and their width: whole heads can go
        ([(1, 2)], [1], 3),
        ([(1, 2)], [1, 2], 0),  # it varies along nothing else
        ([(1, 2)], [0, 3], 12),  # it does not vary there
        ([1, 2], [2], 4),  # of two factors one stays
        ([1], [1], 0),
    ],
)
def test_what_is_kept_whole(dims, along, classes, ids):
    oracle = Oracle(ids, (2, 4, 3, 5), *dims)
    out = ids.keep_whole(oracle.value, along, 'why')
    assert oracle.classes() == classes
    assert {reason for _, reason in ids.frozen} <= {'why'}
    free = [f for f in out.factors if not set(np.unique(ids.find(f)).tolist()) <= _frozen(ids)]
    assert not any(f.shape[dim] > 1 for f in free for dim in along)


@pytest.mark.parametrize(
    ('dims', 'along', 'classes'),
    [
        ([(1, 2)], [2], 4),
        ([(1, 2)], [1, 2], 12),  # varies along those alone: all of it is seen at once
        ([1, 2], [2], 4 + 3),
        ([1], [1], 4),
    ],
)
def test_what_is_grouped(dims, along, classes, ids):
    oracle = Oracle(ids, (2, 4, 3, 5), *dims)
    ids.group_along(oracle.value, along)
    assert oracle.classes() == classes
    assert not ids.frozen


def test_contraction_ties_what_is_summed_over(ids):
    """(rows, inner, 1) times (1, inner, columns)."""
    left, right = Oracle(ids, (6, 8, 1), 0, 1), Oracle(ids, (1, 8, 5), 1, 2)
    every = ids.contract([left.value, right.value], (6, 8, 5), [1])
    assert np.array_equal(ids.find(left.arrays[1][0, :, 0]), ids.find(right.arrays[0][0, :, 0]))
    out = ids.squeeze(every, [1])
    assert out.shape == (6, 5)
    assert [f.shape for f in out.factors] == [(6, 1), (1, 5)]
    assert left.classes() == 6 + 8
    assert right.classes() == 8 + 5


def test_contraction_keeps_heads_together(ids):
    """(heads, tokens, width) twice: of no head a part of its width is left."""
    left, right = (Oracle(ids, (4, 5, 3), (0, 2)) for _ in range(2))
    ids.contract([left.value, right.value], (4, 5, 3), [2])
    assert left.classes() == right.classes() == 4
    assert np.array_equal(ids.find(left.arrays[0]), ids.find(right.arrays[0]))


def test_combining_settles_whatever_the_order(ids):
    """Kept whole for one operand's sake, it meets the next operand's ids."""
    heads = Oracle(ids, (4, 3), (0, 1))
    row, number = Oracle(ids, (1, 3), 1), Value((4, 3), [ids.fresh(4).reshape(4, 1)])
    ids.combine([row.value, heads.value, number], (4, 3))
    assert row.classes() == 0  # meets the number's second dimension, of which nothing can go
    assert heads.classes() == 4


@pytest.mark.parametrize(('shape', 'free'), [((4, 6), 6), ((6, 4), 6), ((2, 3, 8), 8)])
def test_rectangles_keep_their_longest_side_free(shape, free, ids):
    oracle = Oracle(ids, shape, tuple(range(len(shape))))
    ids.rectangular([oracle.value])
    assert oracle.classes() == free
    longest = shape.index(free)
    roots = np.moveaxis(ids.find(oracle.arrays[0]), longest, -1).reshape(-1, free)
    assert (roots == roots[0]).all()


def test_rectangles_that_share_ids_are_settled_together(ids):
    """Rows tied in one view tie columns of another."""
    oracle = Oracle(ids, (4, 6), (0, 1))
    turned = ids.permute(oracle.value, (1, 0), (6, 4))
    long = ids.reshape(oracle.value, (24,))
    several = ids.reshape(long, (8, 3))
    ids.rectangular([turned, several])
    for factor in (*turned.factors, *several.factors):
        assert sum(n > 1 for n in ids.compress(factor).shape) <= 1
