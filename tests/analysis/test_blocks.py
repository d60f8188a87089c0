"""Which modules may be skipped, and how they line up."""

import pytest
import torch
from torch import nn

from mmstp import ChannelGraph, Supernet
from mmstp.analysis.trace import trace
from tests.networks import TINY_INPUT, Residual, build, images, tiny


class Block(nn.Module):
    """A residual block whose way around the layers can be anything."""

    def __init__(self, around=lambda m, x: x, after=lambda x: x, channels=16, layer=None):
        super().__init__()
        self.conv = layer or nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.around, self.after = around, after

    def forward(self, x):
        return self.after(self.around(self, x) + self.conv(x))


class Net(nn.Module):
    """A stem, something in between, a head."""

    def __init__(self, body, forward=lambda body, x: body(x)):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.body = body
        self.head = nn.Conv2d(16, 4, 1)
        self.between = forward

    def forward(self, x):
        return self.head(self.between(self.body, self.stem(x)))


def chains(model):
    """First and skippable blocks of every chain, by path."""
    graph = ChannelGraph.from_model(model.eval(), [torch.randn(1, 3, 4, 4)])
    return [(chain.first, [block.path for block in chain.skippable]) for chain in graph.chains]


def one(block):
    """Whether a block behind another is skippable."""
    return chains(Net(nn.Sequential(Block(), block))) == [('body.0', ['body.1'])]


# --- what is a block ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'block',
    [
        Block(),
        Block(after=torch.relu),
        Block(after=nn.functional.gelu),
        Block(around=lambda m, x: x.relu()),
        Block(around=lambda m, x: x.clone().contiguous()),
        Block(around=lambda m, x: x.flatten(2).reshape(x.shape)),
        Block(around=lambda m, x: nn.functional.dropout(x, 0.5, m.training)),
        Residual(16, 24),
    ],
    ids='plain relu gelu before clone reshape dropout residual'.split(),
)
def test_a_way_around_makes_a_block(block):
    assert one(block)


@pytest.mark.parametrize(
    'block',
    [
        Block(around=lambda m, x: m.norm(x)),
        Block(around=lambda m, x: x * m.norm.weight[:, None, None]),
        Block(around=lambda m, x: x * x.sigmoid()),
        Block(around=lambda m, x: nn.functional.avg_pool2d(x, 3, 1, 1)),
        Block(around=lambda m, x: x * 2),
        Block(after=lambda x: x.softmax(1)),
        nn.Conv2d(16, 16, 1),
        nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.ReLU(),
        nn.Identity(),
    ],
    ids='norm gate product pool scaled softmax conv layers relu identity'.split(),
)
def test_no_way_around_no_block(block):
    assert not one(block)


class Wider(nn.Module):
    """Adds to its input something else than its own shape."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 4)

    def forward(self, x):
        return x[:, :, :1, :1] + self.conv(x)


def test_another_shape_is_no_block():
    assert not one(Wider())


def test_next_to_nothing_is_no_block():
    """Less than 0.2 % of the multiply-adds is not worth a choice."""
    light = nn.Conv2d(16, 16, 1, groups=16)
    heavy = nn.Sequential(Block(), Block(layer=light), nn.Conv2d(16, 16, 31, padding=15))
    assert chains(Net(heavy)) == []
    assert one(Block(layer=light))


def test_a_stage_of_one_block_is_no_block():
    body = nn.Sequential(nn.Sequential(Block()), nn.Sequential(Block()), nn.Sequential(Block()))
    assert chains(Net(body)) == []


class Pair(nn.Module):
    """Blocks inside a block."""

    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x):
        return x + self.inner(x)


def test_of_nested_blocks_the_outer_counts():
    assert one(Pair(nn.Conv2d(16, 16, 1), Block()))


def test_several_blocks_in_one_are_a_stage():
    model = Net(nn.Sequential(Block(), Pair(nn.Conv2d(16, 16, 1), Block(), Block())))
    assert chains(model) == [('body.1.inner.0', ['body.1.inner.1', 'body.1.inner.2'])]


def test_a_module_that_runs_twice_is_no_block():
    """It cannot be left out once."""
    block = Block()
    assert chains(Net(nn.ModuleList([Block(), block]), lambda b, x: b[1](b[1](b[0](x))))) == []


class TwoInputs(Block):
    def forward(self, x, scale):
        return x + self.conv(x) * scale


def further_input(body, x):
    for block in body:
        scale = x.mean((2, 3), keepdim=True)
        x = block(x, scale) if isinstance(block, TwoInputs) else block(x)
    return x


def test_a_block_may_have_further_inputs():
    """Of those, the residual stream is what leads around the layers."""
    body = nn.ModuleList([Block(), TwoInputs(), TwoInputs()])
    found = chains(Net(body, further_input))
    assert found == [('body.0', ['body.1', 'body.2'])]
    model = Net(body, further_input).eval()
    supernet = Supernet(model, torch.randn(1, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    expected = model.head(body[0](model.stem(x)))
    row = [0, len(supernet.space.stages[0].widths) - 1]
    with supernet.activate(supernet.space.decode(row)):
        assert torch.equal(model(x), expected)


# --- how blocks line up ---------------------------------------------------------------------------


def test_resnet_s_stages():
    model = build('resnet18')
    graph = ChannelGraph.from_model(model, [images('resnet18', batch=1)])
    found = [(chain.first, [block.path for block in chain.skippable]) for chain in graph.chains]
    assert found == [(f'backbone.layer{i}.0', [f'backbone.layer{i}.1']) for i in range(1, 5)]
    assert graph.chains[0].paths == ('backbone.layer1.0', 'backbone.layer1.1')


def test_what_makes_the_stream_is_first():
    """A layer that is no block, in the blocks' own container."""
    graph = ChannelGraph.from_model(tiny(), [TINY_INPUT])
    assert [chain.paths for chain in graph.chains] == [
        ('stage1.0', 'stage1.1', 'stage1.2'),
        ('stage2.0', 'stage2.1'),
    ]


def test_where_the_stream_comes_from_outside_the_first_block_stays():
    assert chains(Net(nn.Sequential(Block(), Block(), Block()))) == [
        ('body.0', ['body.1', 'body.2'])
    ]
    assert chains(Net(nn.Sequential(Block()))) == []


def test_a_layer_beside_the_block_can_make_the_stream():
    assert chains(Net(Block())) == [('stem', ['body'])]


class Named(nn.Module):
    """Blocks in no container, called by name."""

    def __init__(self):
        super().__init__()
        for i in range(3):
            self.add_module(f'block{i}', Block())

    def forward(self, x):
        return self.block2(self.block1(self.block0(x)))


def test_container_does_not_matter():
    in_list = nn.ModuleList([Block(), Block(), Block()])
    assert chains(Net(in_list, lambda b, x: b[2](b[1](b[0](x))))) == [
        ('body.0', ['body.1', 'body.2'])
    ]
    assert chains(Net(Named())) == [('body.block0', ['body.block1', 'body.block2'])]


def test_order_is_that_of_execution():
    body = nn.ModuleList([Block(), Block(), Block()])
    assert chains(Net(body, lambda b, x: b[1](b[0](b[2](x))))) == [('body.2', ['body.0', 'body.1'])]


def test_branches_are_chains_of_their_own():
    left, right = (nn.Sequential(Block(), Block()) for _ in range(2))
    body = nn.ModuleDict({'left': left, 'right': right})
    assert chains(Net(body, lambda b, x: b['left'](x) * b['right'](x.relu()))) == [
        ('body.left.0', ['body.left.1']),
        ('body.right.0', ['body.right.1']),
    ]


def test_something_in_between_begins_a_new_chain():
    body = nn.Sequential(Block(), Block(), nn.Conv2d(16, 16, 1), Block(), Block())
    assert chains(Net(body)) == [('body.0', ['body.1']), ('body.2', ['body.3', 'body.4'])]


def test_fixed_blocks_stay():
    body = nn.ModuleDict(
        {'a': nn.Sequential(Block(), Block()), 'b': nn.Sequential(Block(), Block())}
    )
    model = Net(body, lambda b, x: b['b'](b['a'](x).tanh()))
    assert len(chains(model)) == 2
    traced = trace(model, [torch.randn(1, 3, 4, 4)])
    graph = ChannelGraph.from_traces(model, [traced], blocks_fixed={'body.a.1': 'why'})
    assert [chain.paths for chain in graph.chains] == [('body.b.0', 'body.b.1')]
    assert graph.unskippable == {'body.a.1': 'why'}


def test_fixed_groups_stay():
    model = Net(nn.Sequential(nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1))).eval()
    traced = trace(model, [torch.randn(1, 3, 4, 4)])
    graph = ChannelGraph.from_traces(model, [traced], groups_fixed={'body.0': 'why'})
    assert [group.name for group in graph.groups] == ['stem', 'body.1']
    assert graph.fixed['body.0'] == 'why'


# --- embeddings -----------------------------------------------------------------------------------


class AfterNorm(nn.Module):
    """A transformer's feed-forward layer that normalises the sum: it cannot be skipped."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(x + self.down(self.up(x).relu()))


class Standardised(nn.Conv2d):
    """Its weight's statistics go over the channels of its input."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias, padding=self.padding)


def embeddings(model, x):
    groups = ChannelGraph.from_model(model.eval(), [x]).groups
    return {group.name for group in groups if group.embedding}


def test_an_embedding_is_a_stream_that_is_normalised_on_its_way():
    x = torch.randn(1, 5, 8)
    layers = nn.Sequential(nn.Linear(8, 16), AfterNorm(), AfterNorm(), nn.Linear(16, 3))
    assert embeddings(layers, x) == {'0'}


def test_statistics_of_weights_make_no_embedding():
    block = lambda: Block(layer=Standardised(16, 16, 3, padding=1))  # noqa: E731
    assert embeddings(Net(nn.Sequential(block(), block())), torch.randn(1, 3, 4, 4)) == set()


def test_hidden_channels_that_are_normalised_are_no_embedding():
    layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))
    assert embeddings(layers, torch.randn(1, 5, 8)) == set()


@pytest.mark.parametrize('depth', [1, 2, 3])
def test_skipped_blocks_are_the_identity(depth):
    """The network with the blocks taken out by hand."""
    torch.manual_seed(0)
    blocks = [Block(after=torch.relu) for _ in range(3)]
    model = Net(nn.Sequential(*blocks)).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = model.head(nn.Sequential(*blocks[:depth])(model.stem(x)))
    supernet = Supernet(model, x)
    architecture = supernet.space.decode([depth - 1, len(supernet.space.stages[0].widths) - 1])
    with supernet.activate(architecture):
        assert torch.equal(model(x), expected)
    assert torch.equal(supernet.export(architecture)(x), expected)
