"""Train and eval mode, and modules that keep things in one of them."""

import copy

import pytest
import torch
from torch import nn

from mmstp import Supernet
from mmstp.analysis.eval_state import eval_mode, kept_in_eval, overriding, renew
from tests.analysis.small import Net, conv
from tests.relations import Case, subnet_equals_its_export


class FrozenNorm(nn.Sequential):
    """Keeps its first module in eval mode, as OpenMMLab's backbones do; returns None."""

    def train(self, mode=True):
        super().train(mode)
        self[0].eval()


class Table(nn.Module):
    """LeViT's: biases looked up once, when eval mode is entered."""

    def __init__(self, channels=16):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, channels))
        self.register_buffer('index', torch.tensor([0, 2, 1, 1]))

    @torch.no_grad()
    def train(self, mode=True):
        super().train(mode)
        vars(self).pop('bias', None)
        if not mode:
            self.bias = self.table[self.index]
        return self

    def forward(self, x):
        bias = self.table[self.index] if self.training else self.bias
        return x + bias.t()[:, :, None]


class Counting(nn.Module):
    """Has a ``train()`` of its own, but keeps nothing."""

    def __init__(self):
        super().__init__()
        self.entered = []

    def train(self, mode=True):
        self.entered.append(mode)
        return super().train(mode)


def modes(model):
    return [module.training for module in model.modules()]


# --- eval_mode ------------------------------------------------------------------------------------


def mixed():
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Linear(2, 2)
    )
    model.train()
    model[1].eval()
    model[1][0].train()
    return model


def test_everything_is_in_eval_mode_inside():
    model = mixed()
    before = modes(model)
    with eval_mode(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_exceptions_and_nesting_restore_the_modes():
    model = mixed()
    before = modes(model)
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        with eval_mode(model):
            assert not any(modes(model))
        assert not any(modes(model))
        raise ZeroDivisionError
    assert modes(model) == before


def test_what_train_does_to_others_is_undone():
    model = nn.Sequential(FrozenNorm(nn.BatchNorm2d(3), nn.ReLU()), nn.ReLU())
    model.train()
    model[0][0].train()  # set by hand
    before = modes(model)
    assert all(before)
    with eval_mode(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_modules_with_a_train_of_their_own_are_told():
    model = nn.Sequential(Counting(), Counting().eval(), nn.ReLU())
    for module in overriding(model):
        module.entered.clear()
    with eval_mode(model):
        assert [module.entered for module in overriding(model)] == [[False], [False]]
    assert [module.entered for module in overriding(model)] == [[False, True], [False, False]]


def test_live_modules_stay_in_train_mode():
    """Without what is inside them."""
    inner = nn.Sequential(nn.Dropout(), nn.Dropout())
    model = nn.Sequential(inner, nn.Dropout()).eval()
    with eval_mode(model, {inner}):
        assert inner.training
        assert modes(model).count(True) == 1
    assert not any(modes(model))


@pytest.mark.parametrize('training', [True, False])
def test_what_is_kept_in_eval_mode_comes_and_goes(training):
    model = nn.Sequential(Table())
    model.train(training)
    with eval_mode(model):
        assert hasattr(model[0], 'bias')
        with eval_mode(model, {model[0]}):
            assert not hasattr(model[0], 'bias')
        assert hasattr(model[0], 'bias')
    assert hasattr(model[0], 'bias') == (not training)


# --- what is kept in eval mode ------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False])
def test_modules_that_keep_something_are_found(training):
    model = nn.Sequential(Table(), nn.Sequential(Table(), Counting()), FrozenNorm(nn.ReLU()))
    model.train(training)
    before = modes(model)
    assert kept_in_eval(model) == {model[0], model[1][0]}
    assert modes(model) == before
    assert hasattr(model[0], 'bias') == (not training)


def network():
    members = dict(a=conv(3, 16), norm=nn.BatchNorm2d(16), table=Table(), b=conv(16, 5))
    return Net(members, lambda m, x: m.b(m.table(m.norm(m.a(x))).relu()))


@pytest.mark.parametrize('training', [True, False])
def test_modules_that_keep_something_are_pruned(training):
    """What they keep is the dense network's: a subnet works its own out."""
    model, x = network().train(training), torch.randn(2, 3, 4, 4)
    supernet = Supernet(model, torch.randn(1, 3, 4, 4), stem=True)
    assert modes(model) == [training] * len(modes(model))
    assert supernet.graph.traced[0].trace.live == {'table'}
    assert [g.name for g in supernet.graph.groups] == ['a']
    assert set(supernet.graph.dims['table.table']) == {1}
    architecture = supernet.space.smallest
    exported = supernet.export(architecture)
    assert exported.table.table.shape == (3, 8)
    model.eval(), exported.eval()
    dense = model(x)
    with supernet.activate(architecture):
        narrow = model(x)
        assert not model.table.training
    assert torch.equal(narrow, exported(x))
    assert torch.equal(model(x), dense)
    model.train(), exported.train()
    with supernet.activate(architecture):
        assert torch.equal(model(x), copy.deepcopy(exported)(x))


@pytest.mark.parametrize('training', [True, False])
def test_what_is_kept_is_renewed(training):
    model = nn.Sequential(Table(), mixed(), FrozenNorm(nn.ReLU()))
    model.train(training)
    model[1][0].train(not training)
    before = modes(model)
    with torch.no_grad():
        model[0].table.fill_(3)
    renew(model)
    assert modes(model) == before
    assert hasattr(model[0], 'bias') == (not training)
    if not training:
        assert (model[0].bias == 3).all()


def test_what_an_export_keeps_is_its_own():
    model = network().eval()
    supernet = Supernet(model, torch.randn(1, 3, 4, 4), stem=True)
    exported = supernet.export(supernet.space.smallest)
    assert torch.equal(exported.table.bias, model.table.bias[:, :8])
    assert not exported.table.training


class Remembering(nn.Module):
    """Works something out in its first forward and keeps it for the next ones."""

    def __init__(self, channels=16):
        super().__init__()
        self.conv = conv(3, channels)
        self.ramp = None

    def forward(self, x):
        x = self.conv(x)
        if self.ramp is None or self.ramp.shape[-1] != x.shape[-1]:
            self.ramp = torch.linspace(-1, 1, x.shape[-1])
        return x * self.ramp


# torch says so where the exporter sees it
@pytest.mark.filterwarnings('ignore:The tensor attribute self.first.ramp was assigned')
def test_forwards_that_keep_tensors():
    members = dict(first=Remembering(), b=conv(16, 5))
    model = Net(members, lambda m, x: m.b(m.first(x).relu())).eval()
    supernet = Supernet(model, torch.randn(1, 3, 4, 4), stem=True)
    assert type(model.first.ramp) in (torch.Tensor, type(None))  # none of the tracer's
    subnet_equals_its_export(Case(supernet, [torch.randn(2, 3, size, size) for size in (4, 6)]))
