"""What a model is called with: all that it takes, and one sentence about what it does not."""

import pytest
import torch
from torch import nn

from mmstp import Supernet
from mmstp.errors import FieldError
from tests.relations import Case, costs_are_those_of_the_export, subnet_equals_its_export

X = torch.randn(1, 3, 16, 16)


class Siamese(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.e = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 24, 1))
        self.out = nn.Conv2d(24, 2, 1)

    def forward(self, a, b):
        return self.out((self.e(a) - self.e(b)).abs())


class TakesList(Siamese):
    def forward(self, pair):
        return super().forward(pair[0], pair[1])


class TakesDict(Siamese):
    def forward(self, batch):
        return {'mask': super().forward(batch['a'], batch['b'])}


class Flag(Siamese):
    def forward(self, a, b=None, double=False):
        y = self.e(a) if b is None else self.e(a) - self.e(b)
        return self.out(y * (2 if double else 1))


class Named(Siamese):
    def forward(self, a, scale=1.0, mask=None, *, other=None):
        y = self.e(a) * scale if mask is None else self.e(a) * mask
        return self.out(y if other is None else y - self.e(other))


def larger(x):
    return torch.randn(3, *x.shape[1:]) if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize(
    ('kind', 'inputs', 'called_with'),
    [
        (Siamese, (X, X), (X, X + 1)),
        (Siamese, {'b': X, 'a': X + 1}, (X + 1, X)),
        (TakesList, ([X, X],), ([X, X + 1],)),
        (TakesDict, ({'a': X, 'b': X},), ({'a': X, 'b': X + 1},)),
        (Flag, (X, None, True), (X, None, True)),
        (Flag, {'a': X, 'double': True}, (X, None, True)),
        (Named, X, (X,)),
        (Named, dict(a=X, mask=torch.rand(1, 1, 8, 8)), (X, 1.0, torch.rand(1, 1, 8, 8))),
    ],
    ids='twice by_name list dict flag defaults alone skipped'.split(),
)
def test_inputs_are_what_the_model_takes(kind, inputs, called_with):
    torch.manual_seed(0)
    supernet = Supernet(kind().eval(), inputs, divisor=1)
    assert len(supernet.graph.groups) == 2
    batch = torch.utils._pytree.tree_map(larger, called_with)
    case = Case(supernet, [called_with, batch])
    subnet_equals_its_export(case)
    costs_are_those_of_the_export(case)


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        (None, r'inputs, a NoneType, hold no tensor: expected a tensor, a tuple of the positional'),
        (torch.Tensor, r'expected a tensor, a tuple of the positional'),
        (torch.zeros(0, 3, 16, 16), r'a tensor of shape \(0, 3, 16, 16\) holds nothing'),
        ((X, object()), r'inputs=<object .*: expected a tensor'),
        ({'a': X, 'c': X}, r"Siamese.forward: .*'(b|c)'"),
        ([], r'a list, hold no tensor'),
    ],
)
def test_other_inputs_are_refused(inputs, message):
    with pytest.raises(FieldError, match=message):
        Supernet(Siamese().eval(), inputs)


def test_arguments_by_name_alone_are_named():
    with pytest.raises(FieldError, match=r"Named.forward takes \['other'\] by name alone"):
        Supernet(Named().eval(), dict(a=X, other=X))


def test_unknown_options_are_refused():
    with pytest.raises(FieldError, match=r"space has no field 'widhts': did you mean 'widths'"):
        Supernet(Siamese().eval(), (X, X), widhts=(0.5,))


def test_an_architecture_is_its_text_and_its_lists_too():
    supernet = Supernet(Siamese().eval(), (X, X), divisor=1)
    smallest = supernet.space.smallest
    lists = [list(smallest.depths), list(smallest.widths)]
    macs = supernet.cost.macs([smallest])
    for one in (smallest, str(smallest), lists):
        assert supernet.cost.macs(one) == supernet.cost.macs([one, one])[:1] == macs
        assert supernet.describe(one) == supernet.describe(smallest)
        with supernet.activate(one):
            assert supernet.model.out.weight.shape[1] < 24
    assert supernet.export(str(smallest)).out.in_channels < 24
