"""What a block that is skipped returns: blocks that take and return more than one tensor."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from mmstp import Supernet
from mmstp.analysis.blocks import CALLED_AGAIN
from mmstp.analysis.handing_on import NO_ARGUMENT
from tests.relations import Case, rebuilt_from_its_spec_it_equals_the_export


class Layer(nn.Module):
    """A residual layer on tokens; how it is called, and what it returns, are others'."""

    def __init__(self, width=16):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 32),
            nn.Linear(32, width),
        )

    def add(self, x, branch=None):
        return x + self.down(self.up(self.norm(x if branch is None else branch)).relu())

    def forward(self, x):
        return self.add(x)


class InTuple(Layer):
    def forward(self, x):
        return (self.add(x),)

    @staticmethod
    def call(layer, x):
        return layer(x)[0]


class WithSize(Layer):
    def forward(self, x, size):
        return self.add(x), size

    @staticmethod
    def call(layer, x):
        out, size = layer(x, (x.shape[1], x.shape[2]))
        assert size == x.shape[1:]
        return out


class WithAttention(Layer):
    """What it returns besides is not used."""

    def forward(self, x, mask=None, output_attentions=False):
        return {'hidden': self.add(x), 'attention': x.softmax(-1) if output_attentions else None}

    @staticmethod
    def call(layer, x):
        return layer(x, output_attentions=True)['hidden']


class WithMask(Layer):
    def forward(self, mask, x, *others):
        return [mask, self.add(x) * 1.0 if others else self.add(x)]

    @staticmethod
    def call(layer, x):
        mask, out = layer(torch.ones(1, x.shape[1], 1), x)
        assert mask.shape == (1, x.shape[1], 1)
        return out


class Identity(Layer):
    """The stream is no first argument."""

    def forward(self, x, identity=None):
        return self.add(identity, x)

    @staticmethod
    def call(layer, x):
        return layer(x.tanh(), identity=x)


class InPlace(Layer):
    def forward(self, x):
        x += self.down(self.up(self.norm(x)).relu())
        return x

    @staticmethod
    def call(layer, x):
        return layer(x)


class Net(nn.Module):
    def __init__(self, layer, width=16):
        super().__init__()
        self.stem, self.head = nn.Linear(8, width), nn.Linear(width, 5)
        self.layers = nn.ModuleList(layer() for _ in range(3))
        self.call = layer.call

    def forward(self, x, layers=None):
        x = self.stem(x)
        for layer in self.layers if layers is None else self.layers[:layers]:
            x = self.call(layer, x)
        return self.head(x.mean(-2))


LAYERS = [InTuple, WithSize, WithAttention, WithMask, Identity, InPlace]


@pytest.mark.parametrize('layer', LAYERS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_a_network_without_its_last_blocks_is_that_network_with_fewer(layer, training):
    """By hand, with more samples than were traced."""
    torch.manual_seed(0)
    model = Net(layer).eval()
    supernet = Supernet(model, torch.randn(1, 6, 8))
    assert supernet.space.skipped(supernet.space.smallest) == ('layers.1', 'layers.2')
    model.train(training)
    x = torch.randn(4, 6, 8)
    expected = model(x, layers=1)
    row = supernet.space.encode(supernet.space.largest)
    row[0] = 0
    architecture = supernet.space.decode(row)
    with supernet.activate(architecture):
        assert torch.equal(model(x), expected)
    assert torch.equal(supernet.export(architecture)(x), expected)


@pytest.mark.parametrize('layer', LAYERS, ids=lambda layer: layer.__name__)
def test_what_is_returned_instead_is_written_into_files(layer):
    torch.manual_seed(0)
    supernet = Supernet(Net(layer).eval(), torch.randn(1, 6, 8))
    case = Case(supernet, [torch.randn(4, 6, 8)])
    rebuilt_from_its_spec_it_equals_the_export(case)


# --- refused, with the reason ---------------------------------------------------------------------


class Named(Layer):
    Output = namedtuple('Output', 'hidden')

    def forward(self, x):
        return self.Output(self.add(x))

    @staticmethod
    def call(layer, x):
        return layer(x).hidden


class Counts(Layer):
    def forward(self, x):
        return self.add(x), x.shape[1] * 3

    @staticmethod
    def call(layer, x):
        return layer(x)[0]


class FromAttribute(Layer):
    """Its stream is no argument."""

    def forward(self, x):
        return self.add(self.stream, x)

    @staticmethod
    def call(layer, x):
        layer.stream = x
        return layer(x.tanh())


class Both(Layer):
    """Two of its tensors are used."""

    def forward(self, x):
        return self.add(x), self.norm(x)

    @staticmethod
    def call(layer, x):
        x, y = layer(x)
        return x + y


class Again(Layer):
    @staticmethod
    def call(layer, x):
        return layer(layer(x))


@pytest.mark.parametrize(
    ('layer', 'reason'),
    [
        (Named, 'it returns a Output, not tensors in tuples, lists or dicts'),
        (Counts, 'it returns 18, which is none of the arguments of its forward'),
        (FromAttribute, NO_ARGUMENT),
        (Both, '2 tensors that it makes are used outside, not one'),
        (Again, CALLED_AGAIN),
    ],
)
def test_blocks_that_stay_are_listed_with_the_reason(layer, reason):
    torch.manual_seed(0)
    graph = Supernet(Net(layer).eval(), torch.randn(1, 6, 8)).graph
    assert graph.chains == ()
    assert {graph.unskippable[f'layers.{i}'] for i in (1, 2)} == {reason}
