"""Operators over channels: what they give for one depends on which others are kept.

They leave channels free. The supernet's check runs them on the kept channels alone, and
`runs_as_subnet` confirms that it agrees with the network's own forward.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmstp import Supernet
from mmstp.analysis.groups import WHOLE
from mmstp.analysis.operators.reductions import ORDER_COUNTS, TRANSFORMED
from mmstp.analysis.operators.shapes import LOOKED_UP
from mmstp.subnets.apart import DIFFERS
from tests.analysis.small import Net, analyse, conv, kept, parameter, runs_as_subnet, shapes


@pytest.fixture(autouse=True)
def seeded_layers():
    torch.manual_seed(0)


def over(graph):
    """By operator, how many positions stay when half the units of every group do."""
    half = [group.units // 2 for group in graph.groups]
    return [
        (str(one.node.target), {dim: len(dims.kept(half)) for dim, dims in one.dims.items()})
        for one in graph.traced[0].reductions
    ]


# --- norms ----------------------------------------------------------------------------------------


def channels_last(x, norm):
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize('affine', [True, False])
def test_layer_norm_over_channels(affine):
    """ConvNeXt's: the channels come last for it."""
    layers = dict(a=conv(3, 16), norm=nn.LayerNorm(16, elementwise_affine=affine), b=conv(16, 5))
    function = lambda m, x: m.b(channels_last(m.a(x), m.norm))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert over(graph) == [('aten.layer_norm.default', {3: 8})]
    if affine:
        assert kept(graph, 'norm.weight', 0, 'a', 2) == [0, 1]
    supernet = runs_as_subnet(layers, function, others=[(1, 3, 5, 6)])
    if affine:
        assert supernet.export(supernet.space.smallest).norm.normalized_shape == (5,)


@pytest.mark.parametrize(
    'norm',
    [
        lambda m, x: F.layer_norm(x, (16,), m.w, m.s),
        lambda m, x: F.layer_norm(x, [x.shape[-1]], weight=m.w, bias=m.s),
        lambda m, x: torch.layer_norm(x, normalized_shape=(16,), weight=m.w, bias=m.s),
        lambda m, x: F.rms_norm(x, (x.shape[-1],), m.w) + m.s,
    ],
    ids='function keywords torch rms'.split(),
)
def test_layer_norm_as_a_function(norm):
    layers = dict(a=nn.Linear(3, 16), b=nn.Linear(16, 5), w=parameter(16), s=parameter(16))
    function = lambda m, x: m.b(norm(m, m.a(x)))  # noqa: E731
    graph = analyse(layers, function, (1, 4, 3))
    assert shapes(graph) == {'a': (16, 1)}
    assert len(graph.traced[0].reductions) == 1
    runs_as_subnet(layers, function, (1, 4, 3), [(2, 7, 3)])


def test_layer_norm_over_channels_and_space():
    layers = dict(a=conv(3, 16), norm=nn.LayerNorm([16, 4, 4]), b=conv(16, 5))
    function = lambda m, x: m.b(m.norm(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert kept(graph, 'norm.weight', 0, 'a', 2) == [0, 1]
    assert set(graph.dims['norm.weight']) == {0}
    supernet = runs_as_subnet(layers, function)
    assert supernet.export(supernet.space.smallest).norm.normalized_shape == (5, 4, 4)


def test_layer_norm_over_space_alone_is_none_over_channels():
    layers = dict(a=conv(3, 16), norm=nn.LayerNorm([4, 4]), b=conv(16, 5))
    function = lambda m, x: m.b(m.norm(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert graph.traced[0].reductions == ()
    runs_as_subnet(layers, function)


@pytest.mark.parametrize(
    ('groups', 'units', 'reductions'),
    [(1, 16, [('aten.group_norm.default', {1: 8})]), (4, 4, []), (16, 16, [])],
)
def test_group_norm(groups, units, reductions):
    """One group sees what is kept; of several, whole groups go; of as many as channels, each."""
    layers = dict(a=conv(3, 16), norm=nn.GroupNorm(groups, 16), b=conv(16, 5))
    function = lambda m, x: m.b(m.norm(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (units, 16 // units)}
    assert over(graph) == reductions
    assert kept(graph, 'norm.weight', 0, 'a', 1) == list(range(16 // units))
    supernet = runs_as_subnet(layers, function)
    norm = supernet.export(supernet.space.smallest).norm
    left = {1: (1, 5), 4: (2, 8), 16: (5, 5)}[groups]
    assert (norm.num_groups, norm.num_channels) == left


# torch warns of a number that it does not use, and that no parameter tells to be wrong
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
@pytest.mark.parametrize('options', [{}, {'affine': True}, {'track_running_stats': True}], ids=str)
def test_instance_norm(options):
    """Every channel on its own."""
    layers = dict(a=conv(3, 16), norm=nn.InstanceNorm2d(16, **options), b=conv(16, 5))
    function = lambda m, x: m.b(m.norm(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert graph.traced[0].reductions == ()
    assert ('norm.weight' in graph.dims) == ('affine' in options)
    supernet = runs_as_subnet(layers, function)
    norm = supernet.export(supernet.space.smallest).norm
    if 'track_running_stats' in options:
        assert len(norm.running_mean) == 5


def test_global_response_norm():
    """ConvNeXt V2: the norm over space, divided by its mean over channels."""
    layers = dict(a=conv(3, 16), b=conv(16, 5), gamma=parameter(16), beta=parameter(16))

    def function(m, x):
        x = m.a(x)
        energy = x.norm(p=2, dim=(2, 3), keepdim=True)
        share = energy / (energy.mean(dim=1, keepdim=True) + 1e-6)
        return m.b(x + m.gamma.view(1, -1, 1, 1) * x * share + m.beta.view(1, -1, 1, 1))

    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert over(graph) == [('aten.mean.dim', {1: 8})]
    assert kept(graph, 'gamma', 0, 'a', 2) == [0, 1]
    runs_as_subnet(layers, function)


# --- softmax, means, extremes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    'operator',
    [
        lambda x: x.softmax(1),
        lambda x: x.log_softmax(-3),
        lambda x: x * x.mean(1, keepdim=True),
        lambda x: x * x.mean(1)[:, None],
        lambda x: x * x.mean((1, 2, 3), keepdim=True),
        lambda x: x * x.mean(),
        lambda x: x / x.abs().sum(dim=1, keepdim=True),
        lambda x: x + x.amax(1, keepdim=True),
        lambda x: x + x.max(1, keepdim=True)[0],
        lambda x: x * (x - 5).min(1, keepdim=True).values,
        lambda x: x + x.median(1, keepdim=True)[0],
        lambda x: (x - 5).amax(1, keepdim=True) * x,
        lambda x: x + (x + 5).amin(1, keepdim=True),
        lambda x: x * x.logsumexp(1, keepdim=True),
        lambda x: x * x.sigmoid().prod(1, keepdim=True),
        lambda x: x / (x.std(1, keepdim=True) + 0.1),
        lambda x: x / (x.var(dim=(1, 2), unbiased=False, keepdim=True) + 0.1),
        lambda x: x / (1 + x.norm(dim=1, keepdim=True)),
        lambda x: x / (1 + torch.linalg.vector_norm(x, ord=1, dim=1, keepdim=True)),
        lambda x: (x - torch.std_mean(x, 1, keepdim=True)[1]) * 2,
    ],
    ids=(
        'softmax log_softmax mean dropped_dim all_dims number sum amax max min median '
        'negative_amax amin logsumexp prod std var norm vector_norm std_mean'
    ).split(),
)
def test_channels_that_operators_go_over_are_free(operator):
    layers = dict(a=conv(3, 16), b=conv(16, 5))
    function = lambda m, x: m.b(operator(m.a(x)))  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1)}
    assert len(graph.traced[0].reductions) == 1
    runs_as_subnet(layers, function, others=[(2, 3, 5, 6)])


def test_what_is_reduced_over_channels_can_be_read_by_the_next_layer():
    """CBAM's gate in space: the mean and the largest of all channels."""
    layers = dict(a=conv(3, 16), gate=conv(2, 1), b=conv(16, 5))

    def function(m, x):
        x = m.a(x)
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return m.b(x * m.gate(both).sigmoid())

    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1)}
    assert 'gate.weight' not in graph.dims
    runs_as_subnet(layers, function)


def test_softmax_over_one_of_two_factors():
    """Selective kernels: a softmax over the branches, for every channel on its own."""
    layers = dict(a=conv(3, 16), b=conv(3, 16), down=conv(16, 12), up=conv(12, 32), c=conv(16, 5))

    def function(m, x):
        both = torch.stack([m.a(x), m.b(x)], 1)
        gate = m.up(m.down(both.sum(1).mean((2, 3), keepdim=True)).relu())
        gate = gate.view(len(x), 2, 16, 1, 1).softmax(1)
        return m.c((both * gate).sum(1))

    graph = analyse(layers, function)
    assert {g.makers: g.units for g in graph.groups} == {('a', 'b', 'up'): 16, ('down',): 12}
    assert kept(graph, 'up.weight', 0, 'a', 2) == [0, 1, 16, 17]
    assert graph.traced[0].reductions == ()
    runs_as_subnet(layers, function)


# --- standardised weights -------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """A convolution with another weight than its own."""

    def forward(self, x):
        return F.conv2d(x, self.standardised(), self.bias)


class ByVariance(Standardised):
    def standardised(self):
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return (self.weight - mean) * (var + 1e-5).rsqrt()


class ByBatchNorm(Standardised):
    """timm's."""

    def standardised(self):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-5)
        return weight.reshape_as(self.weight)


class ByRows(Standardised):
    """mmcv's."""

    def standardised(self):
        rows = self.weight.view(self.weight.size(0), -1)
        mean, std = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
        return ((rows - mean) / (std + 1e-5)).view(self.weight.shape)


@pytest.mark.parametrize('cls', [ByVariance, ByBatchNorm, ByRows])
def test_standardised_weights(cls):
    """A filter's mean and variance are those over the input channels that are kept."""
    layers = dict(a=conv(3, 16), ws=cls(16, 24, 1), b=conv(24, 5))
    function = lambda m, x: m.b(m.ws(m.a(x)).relu())  # noqa: E731
    graph = analyse(layers, function)
    assert graph.unknown == {}
    assert shapes(graph) == {'a': (16, 1), 'ws': (24, 1)}
    assert kept(graph, 'ws.weight', 1, 'a', 2) == [0, 1]
    assert graph.traced[0].reductions
    # a batch norm adds up what lies apart in memory in another order
    runs_as_subnet(layers, function, exact=cls is not ByBatchNorm)


# --- what is not free -----------------------------------------------------------------------------


def test_order_of_channels_counts():
    reasons = {
        ORDER_COUNTS: [
            lambda x: torch.cumsum(x, 1),
            lambda x: x.roll(3, 1),
            lambda x: x.flip(1),
            lambda x: x.sort(1).values,
            lambda x: x.topk(16, dim=1)[0],
            lambda x: x + x.argsort(1),
            lambda x: x + x.max(1, keepdim=True)[1],
            lambda x: x + x.argmax(1, keepdim=True),
        ],
        LOOKED_UP: [
            lambda x: x.gather(1, x.argsort(2)),
            lambda x: x[:, torch.arange(15, -1, -1)],
            lambda x: x.index_select(1, torch.arange(15, -1, -1)),
        ],
        TRANSFORMED: [lambda x: torch.fft.rfft(x, dim=1, n=30).real],
    }
    layers = dict(a=conv(3, 16), c=conv(16, 20), b=conv(20, 5))
    for reason, operators in reasons.items():
        for operator in operators:
            graph = analyse(layers, lambda m, x, op=operator: m.b(m.c(op(m.a(x)))))
            assert shapes(graph) == {'c': (20, 1)}
            assert graph.fixed['a'] == reason


def test_reductions_over_what_stays_are_not_recorded():
    """Only operators over free channels are run in another way."""
    layers = dict(a=conv(3, 16), b=conv(16, 24), c=conv(24, 5))
    function = lambda m, x: m.c(m.b(m.a(x)).relu()).softmax(1)  # noqa: E731
    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1), 'b': (24, 1)}
    assert graph.traced[0].reductions == ()


def test_a_reduction_over_several_parts():
    """A norm over two layers' channels, one behind the other: each part keeps its own."""
    layers = dict(a=conv(3, 16), b=conv(3, 24), norm=nn.LayerNorm(43), c=conv(43, 5))

    def function(m, x):
        return m.c(channels_last(torch.cat([m.a(x), x, m.b(x)], 1), m.norm))

    graph = analyse(layers, function)
    assert shapes(graph) == {'a': (16, 1), 'b': (24, 1)}
    (one,) = graph.traced[0].reductions
    assert one.dims[3].kept([2, 3]).tolist() == [0, 1, 16, 17, 18, 19, 20, 21]
    assert (one.dims[3].group[16:19] == WHOLE).all()
    runs_as_subnet(layers, function)


def test_a_mean_written_with_a_number_is_found():
    """Divided by the number of channels when it was traced, or by that of the subnet?"""
    layers = dict(a=conv(3, 16), c=conv(16, 20), b=conv(20, 5))

    def function(m, x):
        x = m.a(x)
        return m.b(m.c(x * x.sum(1, keepdim=True) / x.shape[1]))

    supernet = Supernet(Net(layers, function).eval(), torch.randn(1, 3, 4, 4), stem=True)
    assert DIFFERS in supernet.graph.fixed['a']
    assert shapes(supernet.graph) == {'c': (20, 1)}
