"""Networks whose convolutions have their channels last in memory."""

import copy
import random
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmstp import Supernet
from mmstp.subnets.plan import memory_format_of

aten = torch.ops.aten


class Standardised(nn.Conv2d):
    """Works something out of its weight before it convolves."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Joined(nn.Module):
    """The second convolution takes the channels of two: what it keeps are not its first ones."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(64, 48, 3), nn.BatchNorm2d(48), nn.ReLU())
        self.d = nn.Sequential(Standardised(48, 40, 3), nn.BatchNorm2d(40), nn.ReLU())
        self.e = nn.Sequential(nn.Conv2d(40, 72, 3), nn.BatchNorm2d(72), nn.ReLU())
        self.f = nn.Linear(72, 10)

    def forward(self, x):
        x = self.c(torch.cat([self.a(x), self.b(x)], 1))
        return self.f(self.e(self.d(x)).mean((2, 3)))


def made(memory_format):
    net = Supernet(Joined(), torch.zeros(1, 3, 12, 12), stem=True)
    net.model.to(memory_format=memory_format)
    return net


@pytest.fixture(scope='module')
def supernet():
    return made(torch.channels_last)


IMAGES = torch.randn(4, 3, 12, 12).to(memory_format=torch.channels_last)


@pytest.mark.parametrize('training', [False, True])
def test_a_subnet_equals_its_export(supernet, training):
    net = copy.deepcopy(supernet)
    net.model.train(training)
    for seed in range(4):
        subnet = net.space.sample(random.Random(seed))
        static = net.export(subnet).train(training)
        formats = [memory_format_of(own.weight) for own in static.modules() if is_conv(own)]
        assert formats == [torch.channels_last] * 5
        net.model.zero_grad()
        with net.activate(subnet):
            narrow = net.model(IMAGES)
        assert torch.equal(narrow, static(IMAGES))
        if training:
            narrow.sum().backward()
            static(IMAGES).sum().backward()
            for key, parameter in static.named_parameters():
                own = net.narrow(subnet, key, net.model.get_parameter(key).grad)
                assert torch.equal(own, parameter.grad), key


def is_conv(module):
    return isinstance(module, nn.Conv2d)


class Copies(TorchDispatchMode):
    """Counts copies by their sorted sizes, those that a convolution makes of its weight too."""

    def __init__(self, memory_format):
        super().__init__()
        self.memory_format, self.made = memory_format, Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if function in (aten.clone.default, aten._to_copy.default, aten.index_select.default):
            self.made[tuple(sorted(out.shape))] += 1
        elif function is aten.convolution.default:
            dense = args[1].is_contiguous(memory_format=self.memory_format)
            self.made[tuple(sorted(args[1].shape))] += not dense
        return out


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('half', [False, True])
def test_narrow_weights_are_copied_once(half, memory_format):
    """A view is made dense by its convolution, or by the cast of AMP.

    Once more where AMP casts a copy: of channels that are not the first ones, or what a layer works
    out of its weight, which is copied whenever it is read.
    """
    net = made(memory_format)
    images = IMAGES.to(memory_format=memory_format)
    with net.activate(net.space.smallest), torch.autocast('cpu', torch.bfloat16, enabled=half):
        convolutions = {path: m for path, m in net.model.named_modules() if is_conv(m)}
        shapes = {path: tuple(sorted(m.weight.shape)) for path, m in convolutions.items()}
        with Copies(memory_format) as copies:
            net.model(images)
    assert shapes['a.0'] == shapes['b.0'] and len(set(shapes.values())) == 4
    found = {path: copies.made[shape] for path, shape in shapes.items() if path != 'b.0'}
    assert found == {'a.0': 2 * half, 'c.0': 1 + half, 'd.0': 2 + half, 'e.0': 1}  # a: whole rows


@pytest.mark.parametrize('shape', [(2,), (3, 4), (3, 1, 1, 1), (3, 4, 1, 1), (3, 4, 2, 2)])
def test_others_are_as_they_are_counted(shape):
    assert memory_format_of(torch.zeros(shape)) is torch.contiguous_format
    assert memory_format_of(torch.zeros(*shape, 2)[..., 0]) is torch.contiguous_format
