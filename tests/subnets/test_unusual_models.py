"""Models that are wrapped, compiled, cast or shared: they work, or one message says why not."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from mmstp import Supernet
from mmstp.errors import SupernetError, TraceError
from tests.networks import TINY_INPUT, Tiny, tiny
from tests.relations import Case, some, subnet_equals_its_export


class Wrapped(nn.Module):
    """A network with something around it."""

    def __init__(self):
        super().__init__()
        self.body = tiny()


class Branches(Wrapped):
    def forward(self, x):
        return self.body(x) if x.sum() > 0 else self.body(-x)


class TakesItem(Wrapped):
    def forward(self, x):
        return self.body(x) * float(x.max())


class LeavesTorch(Wrapped):
    def forward(self, x):
        return self.body(torch.from_numpy(np.tanh(x.numpy())))


class WantsMore(nn.Module):
    def forward(self, x):
        raise ValueError('wants 5 channels')


@pytest.mark.parametrize(
    ('cls', 'message'),
    [
        (Branches, r'Branches .*the values of a tensor at .*_models.py:\d+ \(return'),
        (TakesItem, r'TakesItem .*the values of a tensor at .*x.max\(\)\).*torch.where'),
        (LeavesTorch, r'LeavesTorch cannot be traced with .*\(1, 3, 8, 8\)\].*numpy'),
        (WantsMore, r'WantsMore .*ValueError at .*wants 5 channels'),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_named_with_its_line(cls, message, capfd):
    with pytest.raises(TraceError, match=message):
        Supernet(cls(), TINY_INPUT)
    shown = capfd.readouterr()
    assert shown.out == shown.err == ''  # the exporter prints pages


def compiled_in_place():
    model = tiny()
    model.stage1.compile()
    return model


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: nn.DataParallel(tiny()), r'wrapped in DataParallel: .*model\.module'),
        (lambda: torch.compile(tiny()), r'the model is compiled: .*_orig_mod'),
        (compiled_in_place, r'stage1 is compiled'),
        (lambda: torch.jit.script(nn.Sequential(tiny().stem)), 'is a TorchScript module'),
        (lambda: tiny().to('meta'), r'stem\.0\.weight is on the meta device'),
    ],
    ids=['wrapped', 'compiled', 'compiled in place', 'scripted', 'meta'],
)
@pytest.mark.filterwarnings('ignore:`torch.jit')
def test_refused_with_what_to_do(build, message):
    with pytest.raises(SupernetError, match=message):
        Supernet(build(), TINY_INPUT)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    """The example input follows the parameters."""
    supernet = Supernet(tiny().to(dtype), TINY_INPUT, divisor=1)
    assert supernet.inputs[0].dtype == dtype
    architecture = supernet.space.sample(random.Random(0))
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    subnet_equals_its_export(Case(supernet, [x], [architecture]))
    assert supernet.export(architecture)(x).dtype == dtype


def test_frozen_parameters_stay_frozen():
    model = tiny()
    model.stem.requires_grad_(False)
    supernet = Supernet(model, TINY_INPUT, divisor=1)
    architecture = supernet.space.smallest
    with supernet.activate(architecture):
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is None for p in model.stem.parameters())
    assert model.head.weight.grad is not None
    exported = supernet.export(architecture)
    assert {k for k, p in exported.named_parameters() if not p.requires_grad} == {
        k for k, p in model.named_parameters() if not p.requires_grad
    }


class Shares(Tiny):
    """One convolution at two places, one block called twice."""

    def __init__(self):
        super().__init__()
        self.again = self.stage1[1]
        self.stage1[2].conv1 = self.stage1[1].conv1
        self.stage1[2].norm1, self.stage1[2].conv2 = nn.BatchNorm2d(24), nn.Conv2d(24, 16, 1)

    def forward(self, x):
        return self.head(self.stage2(self.again(self.stage1(self.stem(x)))).mean((2, 3)))


def test_shared_modules():
    torch.manual_seed(0)
    model = Shares().eval()
    supernet = Supernet(model, TINY_INPUT, divisor=1)
    assert any('stage1.1.conv1' in group.makers for group in supernet.graph.groups)
    case = Case(supernet, [torch.randn(2, 3, 8, 8)], some(supernet.space, 1, seed=1))
    subnet_equals_its_export(case)
    assert all(exported.again is exported.stage1[1] for _, exported in case.exports)
