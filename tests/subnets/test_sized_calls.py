"""Sizes that Python code gives to operators: what is put in their place, and what is refused."""

import json

import pytest
import torch
import torch.nn.functional as F

from mmstp.analysis.records import SizedCall
from mmstp.errors import CallError
from mmstp.subnets.sized_calls import SuppliedSizes, unsupplied

# (batch, tokens, 4 heads of 6) of which 2 heads stay
APART = SizedCall('reshape', (1, 5, 4, 6), (None, None, 2, None), (((2,), (2, 3)),))
TOGETHER = SizedCall('reshape', (1, 5, 24), (None, None, 12), (((2, 3), (2,)),))
# (1, 4, 5, 6) to (4, 5, 6): heads in the batch
FOLDED = SizedCall('reshape', (4, 5, 6), (2, None, None), (((0, 1), (0,)),))
NOTHING = SizedCall('reshape')


def supplied(function, *calls):
    with SuppliedSizes('block', [calls]) as sizes:
        out = function()
    assert sizes.changed
    return out


# --- what is supplied -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'reshape',
    [
        lambda x: x.view(2, 7, 4, 6),
        lambda x: x.reshape(2, 7, 4, 6),
        lambda x: x.reshape((2, 7, 4, 6)),
        lambda x: x.view([2, 7, 4, 6]),
        lambda x: x.view(size=(2, 7, 4, 6)),
        lambda x: x.view(torch.Size([2, 7, 4, 6])),
        lambda x: torch.reshape(x, (2, 7, 4, 6)),
        lambda x: torch.reshape(x, shape=(2, 7, 4, 6)),
        lambda x: torch.reshape(input=x, shape=(2, 7, 4, 6)),
        lambda x: x.reshape(-1, 7, 4, 6),
        lambda x: x.view(2, -1, 4, 6),
        lambda x: x.view(2, 7, -1, 6),
        lambda x: x.reshape(2, 7, 4, -1),
    ],
)
def test_ways_to_reshape(reshape):
    """Of another batch and number of tokens than traced."""
    x = torch.randn(2, 7, 12)
    call = SizedCall('reshape', (1, 5, 4, 6), (None, None, 2, None), (((2,), (2, 3)),))
    with SuppliedSizes('block', [[call]]):
        out = reshape(x)
    assert torch.equal(out, x.reshape(2, 7, 2, 6))


@pytest.mark.parametrize(
    'unflatten',
    [
        lambda x: x.unflatten(2, (4, 6)),
        lambda x: x.unflatten(-1, (4, 6)),
        lambda x: x.unflatten(2, (4, -1)),
        lambda x: x.unflatten(2, sizes=[4, 6]),
        lambda x: x.unflatten(dim=-1, sizes=(4, 6)),
        lambda x: torch.unflatten(x, 2, (4, 6)),
    ],
)
def test_ways_to_unflatten(unflatten):
    x = torch.randn(2, 7, 12)
    call = SizedCall('unflatten', APART.sizes, APART.dims, APART.runs)
    assert torch.equal(supplied(lambda: unflatten(x), call), x.reshape(2, 7, 2, 6))


@pytest.mark.parametrize(
    'split',
    [
        lambda x: x.split([8, 16], 1),
        lambda x: x.split((8, 16), dim=1),
        lambda x: x.split_with_sizes([8, 16], 1),
        lambda x: torch.split(x, [8, 16], 1),
        lambda x: torch.split(x, split_size_or_sections=[8, 16], dim=1),
        lambda x: torch.split(tensor=x, split_size_or_sections=[8, 16], dim=1),
        lambda x: x.split(split_size=[8, 16], dim=1),
        lambda x: x.split(16, 1),
    ],
)
def test_ways_to_split(split):
    x = torch.randn(2, 11, 3)
    left, right = supplied(lambda: split(x), SizedCall('split', (8, 16), (3, 8)))
    assert torch.equal(left, x[:, :3])
    assert torch.equal(right, x[:, 3:])


@pytest.mark.parametrize('split', [lambda x: x.split(8, 1), lambda x: x.split([8, 8, 8], 1)])
def test_splits_into_equal_parts(split):
    x = torch.randn(2, 15)
    parts = supplied(lambda: split(x), SizedCall('split', (8, 8, 8), (5, 5, 5)))
    assert all(map(torch.equal, parts, x.chunk(3, 1)))


def test_some_parts_of_a_split_stay():
    x = torch.randn(2, 9)
    parts = supplied(lambda: x.split([4, 12], 1), SizedCall('split', (4, 12), (None, 5)))
    assert [part.shape[1] for part in parts] == [4, 5]


@pytest.mark.parametrize(
    'expand',
    [
        lambda x: x.expand(3, 16, 4),
        lambda x: x.expand((3, 16, 4)),
        lambda x: x.expand(3, 16, -1),
        lambda x: x.expand(size=[3, 16, 4]),
    ],
)
def test_ways_to_expand(expand):
    """The batch is the code's, the channels are supplied."""
    x = torch.randn(1, 1, 4)
    call = SizedCall('expand', (1, 16, 4), (None, 5, None))
    assert torch.equal(supplied(lambda: expand(x), call), x.expand(3, 5, 4))


def test_sizes_that_the_code_leaves_open_stay_open():
    x = torch.randn(1, 5, 4)
    with SuppliedSizes('block', [[SizedCall('expand', (1, 16, 4), (None, 5, None))]]) as sizes:
        out = x.expand(3, -1, -1)
    assert out.shape == (3, 5, 4)
    assert not sizes.changed


@pytest.mark.parametrize(
    'repeat',
    [
        lambda x: x.repeat(3, 16, 1),
        lambda x: x.repeat((3, 16, 1)),
        lambda x: x.repeat(repeats=(3, 16, 1)),
    ],
)
def test_ways_to_repeat(repeat):
    x = torch.randn(1, 1, 4)
    call = SizedCall('repeat', (1, 16, 4), (None, 5, None))
    assert torch.equal(supplied(lambda: repeat(x), call), x.repeat(3, 5, 1))


@pytest.mark.parametrize(
    'norm',
    [
        lambda x: F.layer_norm(x, (16,)),
        lambda x: F.layer_norm(x, [16], eps=1e-5),
        lambda x: F.layer_norm(input=x, normalized_shape=(16,)),
        lambda x: torch.layer_norm(x, (16,)),
    ],
)
def test_ways_to_normalise(norm):
    x = torch.randn(2, 5)
    call = SizedCall('layer_norm', (16,), (5,))
    assert torch.equal(supplied(lambda: norm(x), call), F.layer_norm(x, (5,)))


@pytest.mark.parametrize(('batch', 'tokens'), [(1, 5), (3, 5), (2, 9), (4, 4)])
def test_heads_folded_into_the_batch(batch, tokens):
    """The code says batch * 4 heads, and batch on the way back."""
    x = torch.randn(batch, 2, tokens, 6)
    out = supplied(lambda: x.reshape(batch * 4, tokens, 6), FOLDED)
    assert torch.equal(out, x.flatten(0, 1))
    back = SizedCall('reshape', (1, 4, 5, 6), (None, 2, None, None), (((0,), (0, 1)),))
    assert torch.equal(supplied(lambda: out.view(batch, 4, tokens, 6), back), x)
    assert torch.equal(supplied(lambda: out.view(-1, 4, tokens, 6), back), x)


def test_windows_folded_into_the_batch():
    """Space may be any number of them."""
    x = torch.randn(2 * 6, 2, 4, 4)  # 2 images of 6 windows, where 9 were traced
    call = SizedCall('reshape', (1, 9, 4, 4, 4), (None, None, 2, None, None), (((1,), (2,)),))
    out = supplied(lambda: x.view(2, 6, 4, 4, 4), call)
    assert torch.equal(out, x.unflatten(0, (2, 6)))


def test_a_size_taken_from_other_channels_becomes_the_traced_one():
    """``c // heads`` where ``c`` is narrow and the width of a head is not."""
    x = torch.randn(1, 5, 12)
    out = supplied(lambda: x.reshape(1, 5, 4, 12 // 4), APART)
    assert torch.equal(out, x.reshape(1, 5, 2, 6))


def test_calls_that_are_not_concerned_pass():
    x = torch.randn(2, 1, 12)
    with SuppliedSizes('block', [[NOTHING, APART, NOTHING]]) as sizes:
        assert x.view(24).shape == (24,)
        assert x.view(2, 1, 4, 6).shape == (2, 1, 2, 6)
        assert x.permute(2, 0, 1).flatten().unsqueeze(0).reshape(4, 6).shape == (4, 6)
        assert x.view(torch.int32).dtype == torch.int32  # not a shape
        assert x.sum().shape == ()
    assert sizes.changed


def test_right_sizes_change_nothing():
    x = torch.randn(2, 7, 12)
    with SuppliedSizes('block', [[APART]]) as sizes:
        x.reshape(2, 7, 2, 6)
    assert not sizes.changed


def test_gradients_pass():
    x = torch.randn(1, 5, 12, requires_grad=True)
    supplied(lambda: x.view(1, 5, 4, 6), APART).square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


# --- several ways through a forward ---------------------------------------------------------------

# the windows of an image apart, as for a mask, and together again
MASKED = SizedCall(
    'reshape', (1, 3, 5, 4, 6), (None, None, None, 2, None),
    (((0,), (0, 1)), ((1,), (2,)), ((2,), (3,)), ((3,), (4,))),
)  # fmt: skip
BACK = SizedCall(
    'reshape', (3, 5, 24), (None, None, 12), (((0, 1), (0,)), ((2,), (1,)), ((3, 4), (2,)))
)


@pytest.mark.parametrize('masked', [False, True])
def test_the_way_that_is_taken_is_followed(masked):
    x = torch.randn(6, 5, 12)
    with SuppliedSizes('block', [[APART, TOGETHER], [APART, MASKED, BACK]]) as sizes:
        heads = x.view(6, 5, 4, 6)
        if masked:
            heads = heads.view(2, 3, 5, 4, 6)
        out = heads.reshape(-1, 5, 24)
    assert torch.equal(out, x)
    assert sizes.changed


def test_ways_that_end_early_are_ways():
    x = torch.randn(1, 5, 12)
    with SuppliedSizes('block', [[APART], [APART, TOGETHER]]):
        x.view(1, 5, 4, 6)
    with SuppliedSizes('block', [[APART], [APART, TOGETHER]]):
        x.view(1, 5, 4, 6).view(1, 5, 24)
    with (
        pytest.raises(CallError, match=r"^block ends before it calls 'reshape'"),
        SuppliedSizes('block', [[APART, MASKED, BACK], [APART, TOGETHER]]),
    ):
        x.view(1, 5, 4, 6)


def test_ways_that_cannot_be_told_apart_are_refused():
    other = SizedCall('reshape', (1, 5, 4, 6), (None, None, None, 3), (((2,), (2, 3)),))
    with (
        pytest.raises(CallError, match=r"'reshape' with \(1, 5, 4, 6\), where the ways that were"),
        SuppliedSizes('block', [[APART], [other]]),
    ):
        torch.randn(1, 5, 12).view(1, 5, 4, 6)


def test_batch_and_space_do_not_make_another_way():
    larger = SizedCall('reshape', (9, 7, 4, 6), APART.dims, APART.runs)
    with SuppliedSizes('block', [[APART, TOGETHER], [larger]]):
        assert torch.randn(2, 7, 12).view(2, 7, 4, 6).shape == (2, 7, 2, 6)


# --- what is refused ------------------------------------------------------------------------------


def test_other_calls_are_refused():
    x = torch.randn(2, 12)
    with (
        pytest.raises(CallError, match=r"^stage\.1 calls 'split' where its trace does not"),
        SuppliedSizes('stage.1', [[APART]]),
    ):
        x.split(4, 1)


def test_more_calls_are_refused():
    x = torch.randn(1, 5, 12)
    with (
        pytest.raises(CallError, match=r"^block calls 'reshape' where its trace does not"),
        SuppliedSizes('block', [[APART]]),
    ):
        x.view(1, 5, 4, 6).view(1, 5, 12)


def test_fewer_calls_are_refused():
    x = torch.randn(1, 5, 12)
    with (
        pytest.raises(CallError, match=r"^the model ends before it calls 'split', which its"),
        SuppliedSizes('', [[APART, SizedCall('split', (4, 4), (2, 2))]]),
    ):
        x.view(1, 5, 4, 6)


def test_sizes_that_do_not_fit_are_refused():
    message = (
        r'block reshapes \(1, 5, 11\) to \(1, 5, 4, 6\), where its trace has \(1, 5, 4, 6\): '
        r'the subnet has \(None, None, 2, None\) there'
    )
    with pytest.raises(CallError, match=message), SuppliedSizes('block', [[APART]]):
        torch.randn(1, 5, 11).view(1, 5, 4, 6)


# --- scope ----------------------------------------------------------------------------------------


def reshapes(x):
    """Whether a reshape with the dense sizes is supplied with others now."""
    try:
        return x.view(1, 5, 4, 6).shape == (1, 5, 2, 6)
    except RuntimeError:
        return False


def test_nested_modules_each_see_their_own_calls():
    """A call of the inner is one of the outer too."""
    x = torch.randn(1, 5, 12)
    with SuppliedSizes('outer', [[NOTHING, TOGETHER, APART, TOGETHER]]) as outer:
        whole = x.view(1, 5, 2, 6).reshape(1, 5, 24)
        with SuppliedSizes('outer.inner', [[APART]]) as inner:
            apart = whole.view(1, 5, 4, 6)
        assert apart.shape == (1, 5, 2, 6)
        assert apart.reshape(1, 5, 24).shape == (1, 5, 12)
    assert outer.changed
    assert inner.changed


def test_an_error_of_the_inner_module_leaves_nothing_behind():
    x = torch.randn(1, 5, 12)
    with (
        pytest.raises(ZeroDivisionError),
        SuppliedSizes('outer', [[APART, TOGETHER]]),
        SuppliedSizes('outer.inner', [[APART]]),
    ):
        raise ZeroDivisionError  # not that calls are missing
    assert not reshapes(x)
    with SuppliedSizes('outer', [[APART]]):
        assert reshapes(x)
    assert not reshapes(x)


def test_forwards_of_their_own_are_not_supplied():
    x = torch.randn(1, 5, 12)
    with SuppliedSizes('outer', [[APART, NOTHING]]) as mode:
        with unsupplied():
            assert not reshapes(x)
            with unsupplied():
                assert not reshapes(x)
            assert not reshapes(x)
        with pytest.raises(ZeroDivisionError), unsupplied():
            raise ZeroDivisionError
        assert not mode.paused
        assert reshapes(x)
        x.reshape(60)


def test_modules_inside_a_forward_of_its_own_are_supplied():
    x = torch.randn(1, 5, 12)
    with SuppliedSizes('outer', [[]]), unsupplied():
        with SuppliedSizes('outer.inner', [[APART]]):
            assert reshapes(x)
        assert not reshapes(x)


# --- as plain data --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'call',
    [
        APART,
        FOLDED,
        NOTHING,
        SizedCall('split', (4, 12), (None, 5)),
        SizedCall('layer_norm', (16,), (5,)),
    ],
)
def test_calls_go_through_json(call):
    assert SizedCall.from_list(json.loads(json.dumps(call.to_list()))) == call
