"""The cost table in all its ways of asking, and against the paper."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from mmstp import Architecture, ArchitectureError, ChannelGraph, CostModel, SearchSpace
from mmstp.search.cost import METRICS
from tests.networks import classifier
from tests.relations import counted


def some(space, count):
    rng = random.Random(0)
    return [space.smallest, space.largest, *(space.sample(rng) for _ in range(count))]


@pytest.mark.parametrize('name', ['resnet50', 'densenet', 'hrnet'])
@pytest.mark.parametrize('count', METRICS)
def test_all_at_once_equals_one_by_one(name, count, supernet_of):
    supernet = supernet_of(name)
    architectures = some(supernet.space, 30)
    rows = np.stack([supernet.space.encode(a) for a in architectures])
    costs = supernet.cost.count(rows, count)
    assert costs.dtype == np.int64
    assert costs.tolist() == supernet.cost.count(architectures, count).tolist()
    assert costs.tolist() == [int(supernet.cost.count([a], count)[0]) for a in architectures]


def test_more_rows_than_are_evaluated_together(supernet_of):
    """In whatever order, and over the borders of the chunks."""
    supernet = supernet_of('regnet')
    rows = np.random.default_rng(0).permutation(supernet.space.all_rows())[:9000]
    costs = supernet.cost.macs(rows)
    assert np.array_equal(supernet.cost.macs(rows[::-1]), costs[::-1])
    assert np.array_equal(supernet.cost.macs(rows[4090:4110]), costs[4090:4110])


def test_no_architectures_have_no_costs(supernet_of):
    assert supernet_of('wrn16_2').cost.macs([]).shape == (0,)


@pytest.mark.parametrize('name', ['resnet50', 'mobilenet_v2', 'hrnet'])
def test_larger_architectures_cost_more(name, supernet_of):
    supernet = supernet_of(name)
    rng = random.Random(0)
    for architecture in some(supernet.space, 10):
        larger = supernet.space.expand(architecture, rng)
        for count in METRICS:
            small, large = supernet.cost.count([architecture, larger], count)
            assert small <= large


@pytest.fixture(scope='module')
def resnet50_of_the_paper():
    """ResNet-50 for CIFAR-100, counted at 224 x 224."""
    model = classifier(2048, type='ResNet', depth=50, classes=100)
    graph = ChannelGraph.from_model(model, [torch.zeros(1, 3, 224, 224)])
    space = SearchSpace(graph)
    return space, CostModel(graph, space)


@pytest.mark.parametrize(
    ('architecture', 'flops', 'params'),
    [
        ('((1, 2, 5, 2), (0.5, 0.3, 0.3, 0.7))', 15.22, 22.33),
        ('((2, 3, 4, 2), (0.3, 0.3, 0.3, 0.7))', 14.89, 21.94),
    ],
)
def test_table_8_of_the_paper(architecture, flops, params, resnet50_of_the_paper):
    """Rows 3 and 4; the others contradict each other under every convention."""
    space, cost = resnet50_of_the_paper
    pair = [Architecture.parse(architecture), space.largest]
    counted, dense = cost.macs(pair, convention='ptflops')
    assert round(100 * counted / dense, 2) == flops
    counted, dense = cost.params(pair)
    assert round(100 * counted / dense, 2) == params


class OneOfEach(nn.Module):
    """An operator of every kind that ptflops counts, and 2 x 3 positions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.hidden = nn.Conv2d(16, 24, 1, bias=False)
        self.around = nn.Conv2d(16, 24, 1, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = self.hidden(x) + self.around(x)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_conventions_on_a_network_counted_by_hand():
    graph = ChannelGraph.from_model(OneOfEach(), [torch.zeros(1, 3, 2, 3)])
    space = SearchSpace(graph, stem=True)
    cost = CostModel(graph, space)
    for width, inner, outer in ((1.0, 16, 24), (0.5, 8, 16)):
        architecture = Architecture((1,), (width,))
        macs = 6 * (9 * 3 * inner) + 2 * 6 * inner * outer + 5 * outer
        biases = 6 * inner + 5
        norm, relu, add, pool = 2 * 6 * inner, 6 * inner, 6 * outer, 6 * outer
        assert cost.macs([architecture]) == macs
        ptflops = macs + biases + norm + relu + add + pool
        assert cost.macs([architecture], convention='ptflops') == ptflops
        weights = 9 * 3 * inner + 2 * inner * outer + 5 * outer
        assert cost.params([architecture]) == weights + 3 * inner + 5
        assert cost.activations([architecture]) == 6 * inner + 2 * 6 * outer + 5


@torch.no_grad()
def elements_returned(network, inputs):
    sizes = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda module, args, y: sizes.append(y.numel()))
    network(*inputs)
    return sum(sizes)


@pytest.mark.parametrize('name', ['resnet18', 'regnet', 'mobilenet_v3_small', 'densenet'])
def test_activations_are_what_layers_return(name, supernet_of):
    """Hooks on the layers of exports add up what these return."""
    supernet = supernet_of(name)
    for architecture in some(supernet.space, 2):
        returned = elements_returned(supernet.export(architecture), supernet.inputs)
        assert supernet.cost.activations(architecture) == returned
        found = supernet.describe(architecture)
        assert found['activations'] == returned
        dense = supernet.cost.activations(supernet.space.largest)
        assert found['activations_ratio'] == returned / dense


class Unused(OneOfEach):
    """Has a layer that its forward leaves out."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(7, 11)


def test_parameters_that_the_forward_does_not_use_count():
    graph = ChannelGraph.from_model(Unused(), [torch.zeros(1, 3, 2, 3)])
    space = SearchSpace(graph, stem=True)
    total = sum(p.numel() for p in Unused().parameters())
    assert CostModel(graph, space).params([space.largest]) == total


def test_costs_are_of_the_whole_batch():
    model = OneOfEach()
    macs = []
    for batch in (1, 3):
        graph = ChannelGraph.from_model(model, [torch.zeros(batch, 3, 2, 3)])
        space = SearchSpace(graph, stem=True)
        cost = CostModel(graph, space)
        macs.append(cost.macs([space.smallest, space.largest]))
        assert macs[-1][1] == counted(model, torch.zeros(batch, 3, 2, 3))
    assert (macs[1] == 3 * macs[0]).all()


def test_errors_say_what_is_accepted(supernet_of):
    cost = supernet_of('wrn16_2').cost
    with pytest.raises(ValueError, match=r"convention='thop': expected one of \['macs', 'ptflops'"):
        cost.macs([], convention='thop')
    with pytest.raises(ValueError, match=r"metric='flops': expected one of .*'activations'"):
        cost.count([], 'flops')
    with pytest.raises(ArchitectureError, match='has 1 stages, this space has 3'):
        cost.macs([Architecture((1,), (1.0,))])
