"""What operators do to channels, each in the smallest network that shows it.

Every network is also run as its smallest subnet, and cut out, so that what is claimed here about
the positions that stay is what the network's own forward can live with.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmstp import ChannelGraph, Supernet, register_handler
from mmstp.graph import HANDLERS
from mmstp.stages import SpaceError


class Net(nn.Module):
    """Layers ``a``, ``b``, ``c``, ... and a function of them and the input."""

    def __init__(self, layers, function):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def conv(inner, outer, **options):
    return nn.Conv2d(inner, outer, 1, **options)


def analyse(layers, function, shape=(1, 3, 4, 4)):
    return ChannelGraph.from_model(Net(layers, function), [torch.randn(shape)])


def kept(graph, key, dim, group, units):
    """The positions along a tensor's dimension that stay with so many units of one group."""
    whole = [g.units for g in graph.groups]
    index = [g.name for g in graph.groups].index(group)
    whole[index] = units
    return graph.dims[key][dim].kept(whole).tolist()


def shapes(graph):
    """By name, units of each group and channels per unit."""
    return {group.name: (group.units, group.unit_size) for group in graph.groups}


def runs_as_subnet(layers, function, shape=(1, 3, 4, 4)):
    """Makes a supernet, which checks it against the masked trace, and compares the export."""
    model = Net(copy.deepcopy(layers), function).eval()
    supernet = Supernet(model, torch.randn(shape), stem=True, divisor=1)
    architecture = supernet.space.smallest
    x = torch.randn(2, *shape[1:])
    with torch.no_grad(), supernet.activate(architecture):
        assert torch.equal(model(x), supernet.export(architecture)(x))
    return supernet


@pytest.fixture(autouse=True)
def seeded_layers():
    torch.manual_seed(0)


# --- layers with weights --------------------------------------------------------------------------


def test_convolution_with_norm():
    layers = dict(a=conv(3, 16), norm=nn.BatchNorm2d(16), b=conv(16, 5))
    graph = analyse(layers, lambda m, x: m.b(m.norm(m.a(x)).relu()))
    assert shapes(graph) == {'a': (16, 1)}
    for key in ('a.weight', 'a.bias', 'norm.weight', 'norm.bias', 'norm.running_mean',
                'norm.running_var'):  # fmt: skip
        assert kept(graph, key, 0, 'a', 3) == [0, 1, 2]
    assert kept(graph, 'b.weight', 1, 'a', 3) == [0, 1, 2]
    assert set(graph.dims['b.weight']) == {1}  # its rows are the output
    assert set(graph.dims['a.weight']) == {0}  # its columns the input
    assert graph.fixed == {'b': 'an output of the model'}
    assert graph.unknown == {}


@pytest.mark.parametrize(('channels', 'groups'), [(32, 16), (32, 8), (16, 4)])
def test_grouped_convolution_drops_whole_groups(channels, groups):
    """Where there are at least as many groups as channels in one: ResNeXt, RegNet."""
    layers = dict(a=conv(3, channels), g=conv(channels, channels, groups=groups))
    layers['b'] = conv(channels, 5)
    function = lambda m, x: m.b(m.g(m.a(x)).relu())  # noqa: E731
    graph = analyse(layers, function)
    size = channels // groups
    assert shapes(graph) == {'a': (groups, size)}
    assert graph.groups[0].makers == ('a', 'g')
    for key, dim in (('a.weight', 0), ('g.weight', 0), ('g.bias', 0), ('b.weight', 1)):
        assert kept(graph, key, dim, 'a', 3) == list(range(3 * size))
    assert set(graph.dims['g.weight']) == {0}  # columns are those of one group
    supernet = runs_as_subnet(layers, function)
    small = supernet.export(supernet.space.smallest).g
    assert small.groups == -(-3 * channels // (10 * size))  # 0.3 of the channels, rounded up


def test_grouped_convolution_keeps_the_same_of_every_group():
    """Where the groups are few and wide: 2 groups of 16."""
    layers = dict(a=conv(3, 32), g=conv(32, 48, groups=2), b=conv(48, 5))
    function = lambda m, x: m.b(m.g(m.a(x)).relu())  # noqa: E731
    graph = analyse(layers, function)
    assert {group.name: group.units for group in graph.groups} == {'a': 16, 'g': 24}
    assert kept(graph, 'a.weight', 0, 'a', 3) == [0, 1, 2, 16, 17, 18]
    assert kept(graph, 'g.weight', 1, 'a', 3) == [0, 1, 2]
    assert kept(graph, 'g.weight', 0, 'g', 2) == [0, 1, 24, 25]
    assert kept(graph, 'b.weight', 1, 'g', 2) == [0, 1, 24, 25]
    supernet = runs_as_subnet(layers, function)
    assert supernet.export(supernet.space.smallest).g.groups == 2


@pytest.mark.parametrize('multiplier', [1, 3])
def test_depthwise_convolution(multiplier):
    outer = 16 * multiplier
    layers = dict(a=conv(3, 16), g=conv(16, outer, groups=16), b=conv(outer, 5))
    function = lambda m, x: m.b(m.g(m.a(x)).relu())  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'a.weight', 0, 'a', 2) == [0, 1]
    assert kept(graph, 'g.weight', 0, 'a', 2) == list(range(2 * multiplier))
    assert kept(graph, 'b.weight', 1, 'a', 2) == list(range(2 * multiplier))
    supernet = runs_as_subnet(layers, function)
    small = supernet.export(supernet.space.smallest)
    assert (small.g.groups, small.g.in_channels) == (5, 5)  # 0.3 * 16, rounded up


def test_linear_after_flatten_holds_every_position():
    layers = dict(a=conv(3, 16), b=nn.Linear(16 * 6, 20), c=nn.Linear(20, 5))
    function = lambda m, x: m.c(m.b(m.a(x).relu().flatten(1)).relu())  # noqa: E731
    graph = analyse(layers, function, shape=(1, 3, 2, 3))
    assert shapes(graph) == {'a': (16, 1), 'b': (20, 1)}
    assert kept(graph, 'b.weight', 1, 'a', 2) == list(range(12))
    assert kept(graph, 'b.weight', 0, 'b', 2) == [0, 1]
    assert kept(graph, 'c.weight', 1, 'b', 2) == [0, 1]
    runs_as_subnet(layers, function, shape=(1, 3, 2, 3))


@pytest.mark.parametrize('slopes', [1, 16])
def test_slopes_follow_their_channels(slopes):
    layers = dict(a=conv(3, 16), act=nn.PReLU(slopes), b=conv(16, 5))
    function = lambda m, x: m.b(m.act(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert ('act.weight' in graph.dims) == (slopes == 16)
    runs_as_subnet(layers, function)


# --- element by element ---------------------------------------------------------------------------


def test_what_is_added_goes_together():
    layers = dict(a=conv(3, 16), b=conv(3, 16), c=conv(16, 5))
    function = lambda m, x: m.c(m.a(x) + m.b(x))  # noqa: E731
    graph = analyse(layers, function)
    (group,) = graph.groups
    assert (group.name, group.makers, group.units) == ('a', ('a', 'b'), 16)
    runs_as_subnet(layers, function)


def test_squeeze_and_excitation():
    layers = dict(a=conv(3, 32), down=conv(32, 8), up=conv(8, 32), b=conv(32, 5))

    def function(m, x):
        x = m.a(x)
        gate = m.up(m.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return m.b(x * gate)

    graph = analyse(layers, function)
    assert {g.name: g.makers for g in graph.groups} == {'a': ('a', 'up'), 'down': ('down',)}
    assert kept(graph, 'up.weight', 1, 'down', 3) == [0, 1, 2]
    for key, dim in (('up.weight', 0), ('down.weight', 1), ('b.weight', 1)):
        assert kept(graph, key, dim, 'a', 3) == [0, 1, 2]
    runs_as_subnet(layers, function)


@pytest.mark.parametrize(
    'add',
    [
        lambda m, x: m.a(x) + 2,
        lambda m, x: m.a(x) * torch.ones(4, 4),
        lambda m, x: m.a(x) + m.a.bias[:, None, None],
    ],
    ids=['number', 'map over space', 'parameter'],
)
def test_channels_that_meet_these_are_free(add):
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    assert shapes(analyse(layers, lambda m, x: m.b(add(m, x)))) == {'a': (16, 1)}
    runs_as_subnet(layers, lambda m, x: m.b(add(m, x)))


@pytest.mark.parametrize('constant', [torch.arange(16.0)[:, None, None], torch.ones(1, 16, 4, 4)])
def test_channels_that_meet_a_plain_tensor_stay(constant):
    """It is no parameter or buffer, so nothing can be dropped of it."""
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    function = lambda m, x: m.b(m.a(x) + constant)  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {}
    assert graph.fixed['a'] == 'meets a tensor of fixed size'
    with pytest.raises(SpaceError, match='a: meets a tensor of fixed size'):
        runs_as_subnet(layers, function)


# --- shapes ---------------------------------------------------------------------------------------


def test_concatenation_puts_channels_one_behind_the_other():
    layers = dict(a=conv(3, 16), b=conv(3, 24), c=conv(40, 5))
    function = lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1).relu())  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1), 'b': (24, 1)}
    assert kept(graph, 'c.weight', 1, 'a', 2) == [0, 1, *range(16, 40)]
    assert kept(graph, 'c.weight', 1, 'b', 2) == [*range(16), 16, 17]
    runs_as_subnet(layers, function)


def test_concatenation_with_the_input():
    layers = dict(a=conv(3, 16), c=conv(19, 5))
    function = lambda m, x: m.c(torch.cat([x, m.a(x)], 1))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'c.weight', 1, 'a', 2) == [0, 1, 2, 3, 4]
    runs_as_subnet(layers, function)


@pytest.mark.parametrize(
    'split',
    [
        lambda x: x.chunk(2, 1),
        lambda x: x.split(16, 1),
        lambda x: x.split([16, 16], -3),
        lambda x: (x[:, :16], x[:, 16:]),
    ],
    ids=['chunk', 'split', 'split with sizes', 'slices'],
)
def test_equal_parts_keep_the_same_channels(split):
    layers = dict(a=conv(3, 32), b=conv(16, 20), c=conv(16, 20), d=conv(20, 5))

    def function(m, x):
        left, right = split(m.a(x))
        return m.d((m.b(left) * m.c(right)).relu())

    graph = analyse(layers, function)
    assert {group.name: group.units for group in graph.groups} == {'a': 16, 'b': 20}
    assert kept(graph, 'a.weight', 0, 'a', 3) == [0, 1, 2, 16, 17, 18]
    assert kept(graph, 'b.weight', 1, 'a', 3) == [0, 1, 2]
    assert kept(graph, 'c.weight', 1, 'a', 3) == [0, 1, 2]


def test_chunks_run_as_subnets():
    """Without a size in the code."""
    layers = dict(a=conv(3, 32), b=conv(16, 5))

    def function(m, x):
        left, right = m.a(x).chunk(2, 1)
        return m.b(left * right.sigmoid())

    supernet = runs_as_subnet(layers, function)
    assert supernet.export(supernet.space.smallest).a.out_channels == 2 * 5  # 0.3 * 16, rounded up


@pytest.mark.parametrize(
    ('split', 'reason'),
    [
        (lambda x: x.split([8, 24], 1), r'split into unequal parts [8, 24]'),
        (lambda x: (x[:, :8], x[:, 8:]), 'sliced into parts [(0, 8), (8, 32)]'),
    ],
    ids=['split', 'slices'],
)
def test_unequal_parts_stay_whole(split, reason):
    layers = dict(a=conv(3, 32), b=conv(8, 20), c=conv(24, 20), d=conv(20, 5))

    def function(m, x):
        left, right = split(m.a(x))
        return m.d((m.b(left) * m.c(right)).relu())

    graph = analyse(layers, function)
    assert shapes(graph) == {'b': (20, 1)}
    assert graph.fixed['a'] == reason
    runs_as_subnet(layers, function)


def test_a_part_that_is_taken_alone_stays_whole():
    layers = dict(a=conv(3, 32), b=conv(8, 20), c=conv(20, 5))
    function = lambda m, x: m.c(m.b(m.a(x)[:, 4:12]).relu())  # noqa: E731
    graph = analyse(layers, function)
    assert graph.fixed['a'] == 'sliced into parts [(4, 12)]'
    runs_as_subnet(layers, function)


def test_shuffled_channels_are_followed():
    """ShuffleNet's: the two halves are interleaved."""
    layers = dict(a=conv(3, 16), b=conv(16, 5))

    def function(m, x):
        x = m.a(x)
        return m.b(x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))

    graph = analyse(layers, function)
    assert {group.name: group.units for group in graph.groups} == {'a': 8}
    assert kept(graph, 'a.weight', 0, 'a', 3) == [0, 1, 2, 8, 9, 10]
    assert kept(graph, 'b.weight', 1, 'a', 3) == [0, 1, 2, 3, 4, 5]
    runs_as_subnet(layers, function)


def test_stacked_layers_are_tied():
    layers = dict(a=conv(3, 16), b=conv(3, 16), c=conv(16, 5))
    function = lambda m, x: m.c(torch.stack([m.a(x), m.b(x)]).sum(0))  # noqa: E731
    graph = analyse(layers, function)
    (group,) = graph.groups
    assert group.makers == ('a', 'b')
    runs_as_subnet(layers, function)


def test_padding_of_channels():
    """The parameterless shortcut of the first ResNets: zeros around the old channels."""
    layers = dict(a=conv(3, 16), b=conv(16, 32), c=conv(32, 5))

    def function(m, x):
        x = m.a(x)
        return m.c(m.b(x.relu()) + F.pad(x, (0, 0, 0, 0, 8, 8)))

    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    outside = [*range(8), *range(24, 32)]
    assert kept(graph, 'b.weight', 0, 'a', 2) == sorted([*outside, 8, 9])
    assert kept(graph, 'b.weight', 1, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function)


@pytest.mark.parametrize(
    'shape',
    [
        lambda x: F.pad(x, (1, 2, 3, 0)),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2.0),
        lambda x: F.interpolate(x, size=(5, 7), mode='bilinear'),
        lambda x: x.transpose(2, 3).contiguous(),
        lambda x: x.flatten(2).permute(0, 2, 1).permute(0, 2, 1)[..., None],
        lambda x: x[:, :, 1:, ::2],
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: torch.cat([x, x], 0),
        lambda x: x.double().float().clone(),
        lambda x: x[:1].expand(2, -1, -1, -1),
    ],
    ids='pad pool nearest bilinear transpose permute slice mean batch cast expand'.split(),
)
def test_operators_over_space_leave_channels_free(shape):
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    function = lambda m, x: m.b(shape(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'b.weight', 1, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function)


@pytest.mark.parametrize(
    ('operator', 'reason'),
    [
        (lambda x: x.mean(1, keepdim=True).expand_as(x), 'reduced over its channels'),
        (lambda x: x[:, 3:4].expand(-1, 16, -1, -1), 'sliced into parts [(3, 4)]'),
        (lambda x: x.select(1, 3)[:, None].expand(-1, 16, -1, -1), 'a single channel is selected'),
    ],
    ids=['mean', 'slice', 'select'],
)
def test_operators_over_channels_make_them_stay(operator, reason):
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    graph = analyse(layers, lambda m, x: m.b(operator(m.a(x))))
    assert shapes(graph) == {}
    assert graph.fixed['a'] == reason


# --- operators without a handler ------------------------------------------------------------------


@torch.library.custom_op('mmstp_tests::halve', mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@halve.register_fake
def _(x):
    return torch.empty_like(x)


class Halve(nn.Module):
    def forward(self, x):
        return halve(x)


class Cumulate(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, 1)


@pytest.mark.parametrize(('name', 'layer'), [('halve', Halve()), ('cumsum', Cumulate())])
def test_unknown_operators_are_named_and_their_channels_stay(name, layer):
    layers = dict(a=conv(3, 16), odd=nn.Sequential(layer), b=conv(16, 20), c=conv(20, 5))
    function = lambda m, x: m.c(m.b(m.odd(m.a(x))))  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {name: ['odd.0']}
    assert graph.fixed['a'] == f"operator '{name}' has no handler"
    assert shapes(graph) == {'b': (20, 1)}
    runs_as_subnet(layers, function)


def test_a_registered_handler_makes_them_free(monkeypatch):
    monkeypatch.setitem(HANDLERS, 'halve', None)  # to be undone

    @register_handler('halve')
    def halved(walk, node, x):
        return walk.ids.combine([x], x.shape)

    layers = dict(a=conv(3, 16), odd=Halve(), b=conv(16, 20), c=conv(20, 5))
    function = lambda m, x: m.c(m.b(m.odd(m.a(x))))  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1), 'b': (20, 1)}
    runs_as_subnet(layers, function)


def test_in_place_variants_are_the_same_operators():
    layers = dict(a=conv(3, 16), b=conv(3, 16), c=conv(16, 5))
    plain = analyse(layers, lambda m, x: m.c((m.a(x) + m.b(x)).relu() * 2))
    in_place = analyse(layers, lambda m, x: m.c(m.a(x).add_(m.b(x)).relu_().mul_(2)))
    assert plain.groups[0].makers == in_place.groups[0].makers == ('a', 'b')
    assert in_place.unknown == {}
    assert plain.costs == in_place.costs
