"""Layers whose weight is worked out of other tensors: by hooks, and by parametrizations."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from mmstp import Supernet
from mmstp.errors import SpaceError
from tests.relations import (
    Case,
    costs_are_those_of_the_export,
    rebuilt_from_its_spec_it_equals_the_export,
    slicing_equals_masking,
    some,
    subnet_equals_its_export,
)


def masked(layer):
    return prune.l1_unstructured(layer, 'weight', 0.3)


pytestmark = pytest.mark.filterwarnings('ignore:.*weight_norm. is deprecated:FutureWarning')
WRAPS = [weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm, masked]


class Net(nn.Module):
    """Grouped and transposed convolutions too, whose ``groups`` follow from the weight's shape."""

    def __init__(self, wrap):
        super().__init__()
        self.a = wrap(nn.Conv2d(3, 16, 3, padding=1))
        self.b = wrap(nn.Conv2d(16, 16, 3, padding=1, groups=16))
        self.up = wrap(nn.ConvTranspose2d(16, 24, 2, stride=2))
        self.fc = wrap(nn.Linear(24, 5))

    def forward(self, x):
        return self.fc(self.up(self.b(self.a(x).relu()).relu()).relu().mean((2, 3)))


def build(wrap):
    torch.manual_seed(0)
    return Net(wrap)


@pytest.mark.parametrize('wrap', WRAPS, ids=['weight', 'weight_p', 'spectral_p', 'mask'])
def test_they_are_narrowed_as_plain_ones(wrap):
    supernet = Supernet(build(wrap).eval(), torch.randn(1, 3, 6, 6), stem=True)
    assert len(supernet.graph.groups) == 2
    case = Case(
        supernet,
        [torch.randn(3, 3, 6, 6)],
        some(supernet.space),
        lambda: build(wrap).eval(),
    )
    subnet_equals_its_export(case)
    slicing_equals_masking(case)
    if wrap in (weight_norm, masked):  # a parametrized layer has a class of its own
        rebuilt_from_its_spec_it_equals_the_export(case)
    costs_are_those_of_the_export(case)
    small = supernet.export(supernet.space.smallest)
    assert (small.b.groups, small.b.in_channels, small.up.in_channels) == (8, 8, 8)


def test_hooks_that_reshape_are_named():
    with pytest.raises(SpaceError, match=r'forward_pre_hook.*parametrizations\.spectral_norm'):
        Supernet(build(spectral_norm).eval(), torch.randn(1, 3, 6, 6), stem=True)


def test_what_a_subnet_s_forward_assigns_to_buffers_is_dropped():
    """Spectral norm's vectors are worked out further in training, in the main network alone."""
    model = build(parametrizations.spectral_norm).train()
    supernet = Supernet(model, torch.randn(1, 3, 6, 6), stem=True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with supernet.activate(supernet.space.smallest):
        model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    model(torch.randn(2, 3, 6, 6))
    assert not all(torch.equal(b, before[name]) for name, b in model.named_buffers())
