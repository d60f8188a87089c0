"""Tracing leaves a model, and torch, as they were: whatever its forward does to itself."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

from mmstp import Supernet
from mmstp.errors import SupernetError, TraceError, VerificationError
from tests.networks import equal
from tests.relations import Case, slicing_equals_masking, subnet_equals_its_export

X = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    """Convolutions with positions added in between."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.b, self.c = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 4, 1)

    def positions(self, x):
        return torch.linspace(0, 1, x.shape[-1]).expand(1, 1, x.shape[-2], -1).contiguous()

    def forward(self, x):
        return self.c(self.b(self.norm(self.a(x)).relu()) * (1 + self.positions(x)))


class FillsABuffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer('pos', None, persistent=False)

    def positions(self, x):
        if self.pos is None or self.pos.shape[-2:] != x.shape[-2:]:
            self.pos = super().positions(x)
        return self.pos


class FillsADict(Net):
    def __init__(self):
        super().__init__()
        self.cache, self.seen = {}, []

    def positions(self, x):
        if x.shape not in self.cache:
            self.cache[x.shape] = super().positions(x)
        self.seen.append(self.cache[x.shape].mean())
        return self.cache[x.shape]


class ChangesItsInput(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.25))


@pytest.mark.parametrize('kind', [Net, FillsABuffer, FillsADict, ChangesItsInput])
@pytest.mark.parametrize('run_before', [False, True])
def test_what_a_forward_keeps_holds_values_afterwards(kind, run_before):
    torch.manual_seed(0)
    model = kind().eval()
    if run_before:
        model(torch.randn(1, 3, 24, 24))
    example = torch.zeros(1, 3, 16, 16)
    supernet = Supernet(model, example)
    assert not example.any(), 'the example input was changed'
    for module in model.modules():
        held = [*module._buffers.values(), *vars(module).get('cache', {}).values()]
        assert {type(value) for value in held} <= {torch.Tensor, type(None)}

    for size in ((1, 3, 16, 16), (3, 3, 24, 20)):
        x = torch.randn(size)
        for architecture in (supernet.space.smallest, supernet.space.largest):
            network = supernet.export(architecture)
            with supernet.activate(architecture):
                assert equal(model(x.clone()), network(x.clone()))
    slicing_equals_masking(Case(supernet, []))


class FailsHalfway(Net):
    """A buffer is assigned, then the forward goes by a value."""

    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.zeros(1))

    def forward(self, x):
        self.seen = self.seen + 1
        y = super().forward(x)
        return y / 2 if y.mean() > 100 else y


class Counts(Net):
    """A buffer that a forward changes, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(4))

    def forward(self, x):
        y = super().forward(x)
        self.mean.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1)
        return y - self.mean.view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ('kind', 'error'), [(FailsHalfway, TraceError), (Counts, VerificationError)]
)
def test_a_model_that_is_refused_is_as_it_was(kind, error):
    torch.manual_seed(0)
    model = kind().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    registered = len(hooks._global_buffer_registration_hooks)
    with pytest.raises(error):
        Supernet(model, X)
    assert len(hooks._global_buffer_registration_hooks) == registered
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(type(buffer) is torch.Tensor for buffer in model.buffers())
    model(torch.randn(2, 3, 16, 16))
    model.register_buffer('more', torch.zeros(3))


class Makes(Net):
    """Copied by making it anew, which it cannot be without an argument."""

    def __init__(self, width):
        super().__init__()

    def __deepcopy__(self, memo):
        return type(self)()


class Lacks(Net):
    """Its copies have other modules."""

    def __deepcopy__(self, memo):
        return nn.Sequential(nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (Makes(32), r'Makes cannot be copied .*missing 1 required .*__deepcopy__'),
        (Lacks(), r'a copy .* of Lacks has other modules than it has: 0, a, b'),
    ],
)
def test_models_that_cannot_be_copied_are_refused(model, message):
    with pytest.raises(SupernetError, match=message):
        Supernet(model.eval(), X)


def test_subnets_of_a_model_without_a_batch_are_those_with_one():
    """A picture alone: torch's layers take it, and so does the analysis."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(0),
        nn.Linear(256, 4),
    ).eval()
    supernet = Supernet(model, torch.zeros(2, 8, 8), stem=True, divisor=1)
    assert [group.units for group in supernet.graph.groups] == [8, 16]
    subnet_equals_its_export(Case(supernet, [torch.randn(2, 8, 8)]))
