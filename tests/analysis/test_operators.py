"""What operators do to channels, each in the smallest network that shows it.

Every network is also run as its smallest subnet, and cut out, so that what is claimed here about
the positions that stay is what the network's own forward can live with.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d

from mmstp import Supernet, register_handler
from mmstp.analysis.ids import FIXED_SIZE
from mmstp.analysis.operators.products import DIAGONAL
from mmstp.analysis.operators.table import OPERATORS, SUPPLIES
from mmstp.analysis.walk import NO_HANDLER, OUTPUT
from mmstp.errors import OperatorError, SpaceError
from mmstp.subnets.check import FAILS
from mmstp.subnets.sized_calls import SUPPLY
from tests.analysis.small import Net, analyse, conv, kept, parameter, runs_as_subnet, shapes
from tests.relations import Case, costs_are_those_of_the_export, counted


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
    assert graph.fixed == {'b': OUTPUT}
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


@pytest.mark.parametrize('bias', [True, False])
def test_transposed_convolution(bias):
    """Its weight has the input's channels first."""
    up = nn.ConvTranspose2d(16, 20, 2, stride=2, bias=bias)
    layers = dict(a=conv(3, 16), up=up, b=conv(20, 5))
    function = lambda m, x: m.b(m.up(m.a(x)).relu())  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1), 'up': (20, 1)}
    assert kept(graph, 'up.weight', 0, 'a', 2) == [0, 1]
    assert kept(graph, 'up.weight', 1, 'up', 3) == [0, 1, 2]
    supernet = runs_as_subnet(layers, function, others=[(1, 3, 5, 3)])
    small = supernet.export(supernet.space.smallest).up
    assert (small.in_channels, small.out_channels) == (5, 6)


@pytest.mark.parametrize(
    ('groups', 'out', 'found'),
    [
        (16, 16, {'a': (16, 1), 'c': (20, 1)}),  # a bilinear upsampling
        (8, 24, {'a': (8, 2), 'c': (20, 1)}),  # 2 channels in and 3 out per group
        (4, 24, {'a': (4, 4), 'c': (20, 1)}),
        (2, 24, {'a': (8, 2), 'up': (12, 2), 'c': (20, 1)}),  # of each group the same
    ],
)
def test_transposed_convolution_in_groups(groups, out, found):
    up = nn.ConvTranspose2d(16, out, 2, stride=2, groups=groups)
    layers = dict(a=conv(3, 16), up=up, c=conv(out, 20), b=conv(20, 5))
    function = lambda m, x: m.b(m.c(m.up(m.a(x))))  # noqa: E731
    assert shapes(analyse(layers, function)) == found
    supernet = runs_as_subnet(layers, function)
    costs_are_those_of_the_export(Case(supernet, [torch.randn(2, 3, 4, 6)]))
    small = supernet.export(supernet.space.smallest).up
    assert small.out_channels == small.weight.shape[1] * small.groups
    assert small.in_channels == small.weight.shape[0]


@pytest.mark.parametrize(('groups', 'offset_groups'), [(1, 1), (8, 1), (1, 2)])
def test_deformable_convolution(groups, offset_groups):
    layers = dict(
        a=conv(3, 16),
        places=conv(3, 18 * offset_groups),
        weight=nn.Parameter(torch.randn(24, 16 // groups, 3, 3) / 12),
        bias=nn.Parameter(torch.randn(24)),
        b=conv(24, 5),
    )

    def function(m, x):
        seen, bias = m.a(x), m.bias
        return m.b(deform_conv2d(seen, m.places(x), m.weight, bias, padding=1))

    graph = analyse(layers, function)
    assert graph.unknown == {}
    if offset_groups > 1:
        assert graph.fixed['a'] == 'the places that a kernel looks at'
    else:
        assert 'a' in shapes(graph)
    runs_as_subnet(layers, function)


@pytest.mark.parametrize('kind', [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_stay_and_are_counted(kind):
    layers = dict(a=kind(8, 16, num_layers=2, batch_first=True), c=nn.Linear(16, 20))
    layers['b'] = nn.Linear(20, 5)
    function = lambda m, x: m.b(m.c(m.a(x)[0]).relu())  # noqa: E731
    graph = analyse(layers, function, shape=(2, 4, 8))
    assert shapes(graph) == {'c': (20, 1)}
    assert 'recurrent layers stay whole' in graph.fixed['a']
    supernet = runs_as_subnet(layers, function, shape=(2, 4, 8))
    gates = sum(p.numel() for p in supernet.model.a.parameters() if p.dim() == 2)
    whole = 2 * 4 * (gates + 16 * 20 + 20 * 5)
    assert supernet.cost.macs([supernet.space.largest]) == [whole]


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
    assert graph.fixed['a'] == FIXED_SIZE
    with pytest.raises(SpaceError, match=f'a: {FIXED_SIZE}'):
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
        lambda x: x.tensor_split(2, 1),
        lambda x: x.unflatten(1, (2, 16)).unbind(1),
        lambda x: (x.view(-1, 2, 16, 4, 4)[:, 0], x.view(-1, 2, 16, 4, 4).select(1, 1)),
    ],
    ids='chunk split tensor_split unbind select'.split(),
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
    supernet = runs_as_subnet(layers, function)
    assert supernet.export(supernet.space.smallest).a.out_channels == 2 * 5  # 0.3 * 16, rounded up


@pytest.mark.parametrize(
    'split',
    [
        lambda x: x.split([16, 16], -3),
        lambda x: x.split_with_sizes((16, 16), 1),
        lambda x: torch.split(x, split_size_or_sections=[8, 24], dim=1),
        lambda x: x.split([8, 24], 1),
        lambda x: x.split(24, dim=1),
    ],
    ids='list tuple keywords unequal remainder'.split(),
)
def test_parts_of_listed_sizes_are_free_of_each_other(split):
    """Which sizes they have is supplied."""
    left, right = split(torch.zeros(1, 32, 1, 1))
    sizes = left.shape[1], right.shape[1]
    layers = dict(a=conv(3, 32), b=conv(sizes[0], 20), c=conv(sizes[1], 20), d=conv(20, 5))

    def function(m, x):
        left, right = split(m.a(x))
        return m.d((m.b(left) * m.c(right)).relu())

    graph = analyse(layers, function)
    assert [g.name for g in graph.groups] == ['a', 'a', 'b']
    assert [g.units for g in graph.groups] == [*sizes, 20]
    rows = graph.dims['a.weight'][0]
    assert rows.kept([2, 3, 20]).tolist() == [0, 1, *range(sizes[0], sizes[0] + 3)]
    assert graph.dims['b.weight'][1].kept([2, 3, 20]).tolist() == [0, 1]
    assert graph.dims['c.weight'][1].kept([2, 3, 20]).tolist() == [0, 1, 2]
    runs_as_subnet(layers, function)


def test_slices_that_make_up_the_channels_are_tied():
    """Which channels they are is not supplied: the check finds that they cannot be narrow."""
    layers = dict(a=conv(3, 32), b=conv(16, 20), c=conv(16, 20), d=conv(20, 5))

    def function(m, x):
        x = m.a(x)
        return m.d((m.b(x[:, :16]) * m.c(x[:, 16:])).relu())

    graph = analyse(layers, function)
    assert {group.name: group.units for group in graph.groups} == {'a': 16, 'b': 20}
    assert kept(graph, 'a.weight', 0, 'a', 3) == [0, 1, 2, 16, 17, 18]
    supernet = Supernet(Net(layers, function).eval(), torch.randn(1, 3, 4, 4), stem=True)
    assert FAILS in supernet.graph.fixed['a']
    assert shapes(supernet.graph) == {'b': (20, 1)}


def test_unequal_slices_stay_whole():
    layers = dict(a=conv(3, 32), b=conv(8, 20), c=conv(24, 20), d=conv(20, 5))

    def function(m, x):
        x = m.a(x)
        return m.d((m.b(x[:, :8]) * m.c(x[:, 8:])).relu())

    graph = analyse(layers, function)
    assert shapes(graph) == {'b': (20, 1)}
    assert graph.fixed['a'] == 'sliced into parts [(0, 8), (8, 32)]'
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
    'operator',
    [
        lambda x: x[:, 3:4].expand(-1, 16, -1, -1),
        lambda x: x.select(1, 3)[:, None].expand(-1, 16, -1, -1),
    ],
    ids=['slice', 'select'],
)
def test_a_single_channel_that_is_taken_makes_all_stay(operator):
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    graph = analyse(layers, lambda m, x: m.b(operator(m.a(x))))
    assert shapes(graph) == {}
    assert graph.fixed['a'] == 'sliced into parts [(3, 4)]'


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'spread',
    [
        lambda gate: gate.expand(-1, 16, -1, -1),
        lambda gate: gate.expand(len(gate), 16, *gate.shape[2:]),
        lambda gate: gate.expand((-1, 16, 4, 4)),
        lambda gate: gate.repeat(1, 16, 1, 1),
        lambda gate: gate.repeat(repeats=(1, 16, 1, 1)),
    ],
    ids='expand all tuple repeat keyword'.split(),
)
def test_copies_are_as_many_as_the_channels_that_they_meet(spread):
    layers = dict(a=conv(3, 16), gate=conv(3, 1), b=conv(16, 5))
    function = lambda m, x: m.b(m.a(x) * spread(m.gate(x)).sigmoid())  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    runs_as_subnet(layers, function)


def test_repeated_one_by_one():
    layers = dict(a=conv(3, 16), b=conv(32, 5))
    function = lambda m, x: m.b(m.a(x).repeat_interleave(2, 1).repeat_interleave(3, dim=2))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'b.weight', 1, 'a', 2) == [0, 1, 2, 3]
    runs_as_subnet(layers, function)


def test_copies_that_a_layer_reads_stay():
    layers = dict(a=conv(3, 20), gate=conv(20, 1), b=conv(16, 5))
    function = lambda m, x: m.b(m.gate(m.a(x)).expand(-1, 16, -1, -1))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (20, 1)}
    assert 'b.weight' not in graph.dims
    runs_as_subnet(layers, function)


def test_repeated_channels():
    """A copy behind the other: each keeps the same."""
    layers = dict(a=conv(3, 16), b=conv(48, 5))
    function = lambda m, x: m.b(m.a(x).repeat(1, 3, 1, 2))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'b.weight', 1, 'a', 2) == [0, 1, 16, 17, 32, 33]
    runs_as_subnet(layers, function)


# --- gates, pixels, patches -----------------------------------------------------------------------


@pytest.mark.parametrize('gate', [lambda x: F.glu(x, 1), nn.GLU(1)], ids=['function', 'module'])
def test_gated_linear_units(gate):
    layers = dict(a=conv(3, 32), b=conv(16, 5))
    function = lambda m, x: m.b(gate(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 2)}
    assert kept(graph, 'a.weight', 0, 'a', 2) == [0, 1, 16, 17]
    assert kept(graph, 'b.weight', 1, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function)


def test_pixel_shuffle():
    """Four channels become one: they go together."""
    layers = dict(a=conv(3, 64), b=conv(16, 5))
    function = lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 4)}
    assert kept(graph, 'a.weight', 0, 'a', 2) == list(range(8))
    assert kept(graph, 'b.weight', 1, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function, others=[(1, 3, 6, 4)])


def test_pixel_unshuffle():
    """One channel becomes four."""
    layers = dict(a=conv(3, 16), b=conv(64, 5))
    function = lambda m, x: m.b(F.pixel_unshuffle(m.a(x), 2))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'b.weight', 1, 'a', 2) == list(range(8))
    runs_as_subnet(layers, function, others=[(1, 3, 6, 4)])


def test_patches_are_unfolded():
    """Of every channel one per place in the patch, one after the other."""
    layers = dict(a=conv(3, 16), b=nn.Conv1d(64, 5, 1))
    function = lambda m, x: m.b(F.unfold(m.a(x), 2, stride=2))  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'b.weight', 1, 'a', 2) == list(range(8))
    runs_as_subnet(layers, function, others=[(1, 3, 6, 4)])


def test_patches_are_folded():
    layers = dict(a=nn.Conv1d(3, 64, 1), b=conv(16, 5))
    function = lambda m, x: m.b(F.fold(m.a(x), (4, 4), 2, stride=2))  # noqa: E731
    graph = analyse(layers, function, (1, 3, 4))
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 4)}
    assert kept(graph, 'b.weight', 1, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function, (1, 3, 4))


@pytest.mark.parametrize(
    'order',
    [
        lambda x: x.roll((1, -2), (2, 3)),
        lambda x: torch.roll(x, shifts=1, dims=2),
        lambda x: x.flip(2, 3),
        lambda x: x.cumsum(3),
        lambda x: x.cumsum(dim=-1),
        lambda x: x.sort(2)[0],
        lambda x: x.flatten(2).topk(4, dim=2)[0].unflatten(2, (2, 2)),
        lambda x: x.flatten(2).topk(4).values.unflatten(2, (2, 2)),
        lambda x: x.max(2)[0][:, :, None],
        lambda x: x.max(dim=3).values[..., None],
        lambda x: torch.maximum(x, x.flip(2)),
        lambda x: torch.max(x, x.flip(2)),
        lambda x: x.unfold(2, 2, 2).amax(-1),
        lambda x: x[:, :, torch.tensor([2, 0, 1])],
        lambda x: x.index_select(3, torch.tensor([1, 1, 0])),
        lambda x: x + x.argmax(3)[..., None],
    ],
    ids=(
        'roll keywords flip cumsum cumsum_keyword sort topk topk_last max max_keyword '
        'maximum larger unfold index index_select argmax'
    ).split(),
)
def test_order_over_space_leaves_channels_free(order):
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    function = lambda m, x: m.b(order(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'b.weight', 1, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function)


def test_embeddings_follow_their_columns():
    layers = dict(a=nn.Linear(3, 16), table=nn.Embedding(6, 16), b=nn.Linear(16, 5))
    function = lambda m, x: m.b(m.a(x) * m.table(torch.arange(x.shape[1])))  # noqa: E731
    graph = analyse(layers, function, (1, 4, 3))
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert set(graph.dims['table.weight']) == {1}
    runs_as_subnet(layers, function, (1, 4, 3))


def test_filters_over_frequencies():
    """GFNet: a complex weight per frequency and channel."""
    layers = dict(a=conv(3, 16), b=conv(16, 5), weight=parameter(4, 3, 16, 2))

    def function(m, x):
        x = m.a(x).permute(0, 2, 3, 1)
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm='ortho')
        spectrum = spectrum * torch.view_as_complex(m.weight)
        x = torch.fft.irfft2(spectrum, s=(4, 4), dim=(1, 2), norm='ortho')
        return m.b(x.permute(0, 3, 1, 2))

    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert set(graph.dims['weight']) == {2}
    runs_as_subnet(layers, function)


def test_sampled_at_places_of_each_head():
    """Heads are folded into the batch: whole ones go, with their channels and their places."""
    layers = dict(stem=conv(3, 8), value=conv(8, 16), places=conv(8, 8), out=conv(16, 5))

    def function(m, x):
        x = m.stem(x)
        batch, _, height, width = x.shape
        heads = m.value.out_channels // 4
        value = m.value(x).reshape(batch * heads, 4, height, width)
        grid = m.places(x).reshape(batch * heads, 2, height, width).permute(0, 2, 3, 1).tanh()
        sampled = F.grid_sample(value, grid, align_corners=False)
        return m.out(sampled.reshape(batch, heads * 4, height, width))

    graph = analyse(layers, function)
    assert shapes(graph)['places'] == (4, 2)
    assert kept(graph, 'value.weight', 0, 'places', 3) == list(range(12))
    assert kept(graph, 'places.weight', 0, 'places', 3) == list(range(6))
    assert kept(graph, 'out.weight', 1, 'places', 3) == list(range(12))
    runs_as_subnet(layers, function)


# --- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'product',
    [
        lambda x, w: x @ w,
        lambda x, w: torch.matmul(x, w),
        lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)),
        lambda x, w: torch.baddbmm(torch.zeros(1), x, w.expand(len(x), -1, -1)),
        lambda x, w: torch.addmm(torch.ones(20), x.flatten(0, 1), w).unflatten(0, x.shape[:2]),
        lambda x, w: torch.einsum('bni,io->bno', x, w),
        lambda x, w: torch.einsum('...i,io', x, w),
        lambda x, w: torch.einsum('b n i, i o -> b n o', [x, w]),
        lambda x, w: torch.einsum('i...,io->...o', x.permute(2, 0, 1), w),
    ],
    ids='operator matmul bmm baddbmm addmm einsum implicit spaces leading'.split(),
)
def test_products_with_a_parameter(product):
    """Rows go with what is summed over; columns are no layer's, and stay."""
    layers = dict(a=nn.Linear(3, 16), w=parameter(16, 20), b=nn.Linear(20, 5))
    function = lambda m, x: m.b(product(m.a(x), m.w).relu())  # noqa: E731
    graph = analyse(layers, function, (1, 4, 3))
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'w', 0, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function, (1, 4, 3))


@pytest.mark.parametrize(
    'product',
    [
        lambda m, x: torch.einsum('io,oc,bni->bnc', m.w, m.v, x),
        lambda m, x: torch.einsum('abi,io,oz', x, m.w, m.v),
        lambda m, x: torch.tensordot(x, m.w @ m.v, dims=([2], [0])),
        lambda m, x: m.cell(x.flatten(0, 1))[0].unflatten(0, x.shape[:2]),
        lambda m, x: m.gate(x.flatten(0, 1)).unflatten(0, x.shape[:2]),
        lambda m, x: grouped_attention(m, x),
    ],
    ids='three implicit tensordot lstm_cell gru_cell grouped_queries'.split(),
)
def test_products_are_counted_as_they_are_run(product):
    layers = dict(
        a=nn.Linear(3, 16), w=parameter(16, 4), v=parameter(4, 16), cell=nn.LSTMCell(16, 16),
        gate=nn.GRUCell(16, 16), q=nn.Linear(16, 16), kv=nn.Linear(16, 8),
        b=nn.Sequential(nn.Linear(16, 20), nn.Linear(20, 5)),
    )  # fmt: skip
    function = lambda m, x: m.b(product(m, m.a(x)).relu())  # noqa: E731
    supernet = runs_as_subnet(layers, function, (1, 4, 3), exact=False)
    assert supernet.graph.unknown == {}
    for architecture in (supernet.space.smallest, supernet.space.largest):
        macs = counted(supernet.export(architecture), *supernet.inputs)
        assert supernet.cost.macs([architecture])[0] == macs


def grouped_attention(m, x):
    q, k, v = m.q(x), *m.kv(x).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


def test_products_with_a_vector():
    layers = dict(a=nn.Linear(3, 16), w=parameter(16), c=nn.Linear(4, 20), b=nn.Linear(20, 5))
    function = lambda m, x: m.b(m.c(m.a(x) @ m.w).relu())  # noqa: E731
    graph = analyse(layers, function, (1, 4, 3))
    assert shapes(graph) == {'a': (16, 1), 'c': (20, 1)}
    assert kept(graph, 'w', 0, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function, (1, 4, 3))


def test_the_diagonal_of_a_product_stays():
    layers = dict(a=conv(3, 4), c=nn.Linear(4, 20), b=nn.Linear(20, 5))
    function = lambda m, x: m.b(m.c(torch.einsum('bccw->bw', m.a(x))).relu())  # noqa: E731
    graph = analyse(layers, function)
    assert graph.fixed['a'] == DIAGONAL
    runs_as_subnet(layers, function)


# --- regions --------------------------------------------------------------------------------------


def without_autocast(m, x):
    with torch.autocast('cpu', enabled=False):
        return m.b(m.a(x.float()).relu())


def with_gradients(m, x):
    with torch.enable_grad():
        x = m.a(x).relu()
    return m.b(x)


def nested(m, x):
    x = m.a(x)
    with torch.enable_grad():
        y = x.relu() + 1
        with torch.autocast('cpu', enabled=False):
            y = y * x.mean(1, keepdim=True)
    return m.b(y)


@pytest.mark.parametrize('function', [without_autocast, with_gradients, nested])
def test_regions_of_another_mode_are_looked_into(function):
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert graph.fixed == {'b': OUTPUT}
    runs_as_subnet(layers, function)


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


class Kronecker(nn.Module):
    def forward(self, x):
        return torch.kron(x, torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(
    ('name', 'layer'), [('mmstp_tests::halve', Halve()), ('aten::kron', Kronecker())]
)
def test_unknown_operators_are_named_and_their_channels_stay(name, layer):
    layers = dict(a=conv(3, 16), odd=nn.Sequential(layer), b=conv(16, 20), c=conv(20, 5))
    function = lambda m, x: m.c(m.b(m.odd(m.a(x))))  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {name: ['odd.0']}
    assert graph.fixed['a'] == f"operator '{name}' {NO_HANDLER}"
    assert shapes(graph) == {'b': (20, 1)}
    runs_as_subnet(layers, function)


def test_a_registered_handler_makes_them_free(monkeypatch):
    monkeypatch.setitem(OPERATORS, 'mmstp_tests::halve', None)  # to be undone
    del OPERATORS['mmstp_tests::halve']

    @register_handler('mmstp_tests::halve')
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


@pytest.mark.parametrize('name', ['relu_', 'example::halve.default', 'aten::add_.Tensor'])
def test_names_that_no_operator_has_are_refused(name):
    with pytest.raises(OperatorError, match='expected the name without overload'):
        register_handler(name)(lambda walk, node, x: x)


def test_an_operator_is_registered_once():
    with pytest.raises(OperatorError, match=r"'aten::relu' is registered already, with activation"):
        register_handler('relu')(lambda walk, node, x: x)


# --- constants that a forward makes ---------------------------------------------------------------


@pytest.mark.parametrize(
    'add',
    [
        lambda x: x + torch.zeros(len(x), 16, *x.shape[2:]),
        lambda x: torch.maximum(x, torch.full((16,), 0.1).view(1, -1, 1, 1)),
        lambda x: x * x.new_ones(16)[:, None, None],
        lambda x: x + torch.ones(size=(x.shape[1], 1, 1)),
        lambda x: x + x.new_full((1, 16, 1, 1), 0.5),
    ],
)
def test_constants_of_one_value_are_as_long_as_the_channels_are(add):
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    function = lambda m, x: m.b(add(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert 'a' in shapes(graph)
    runs_as_subnet(layers, function, others=[(1, 3, 6, 8)])


def test_constants_of_several_values_are_not():
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    ramp = lambda m, x: m.b(m.a(x) + torch.linspace(0, 1, 16).view(1, -1, 1, 1))  # noqa: E731
    assert analyse(layers, ramp).fixed['a'] == FIXED_SIZE


def test_ways_to_supply_sizes_are_known():
    assert tuple(SUPPLY) == SUPPLIES
    with pytest.raises(OperatorError, match="supplies='resize': expected one of reshape, "):
        register_handler('example::resize', supplies='resize')
