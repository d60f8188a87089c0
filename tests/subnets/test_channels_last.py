"""Networks whose convolutions have their channels last in memory."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmstp import Supernet
from mmstp.subnets.plan import memory_format_of


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
        self.e = nn.Linear(40, 10)

    def forward(self, x):
        x = self.c(torch.cat([self.a(x), self.b(x)], 1))
        return self.e(self.d(x).mean((2, 3)))


@pytest.fixture(scope='module')
def supernet():
    made = Supernet(Joined(), torch.zeros(1, 3, 12, 12), stem=True)
    made.model.to(memory_format=torch.channels_last)
    return made


IMAGES = torch.randn(4, 3, 12, 12).to(memory_format=torch.channels_last)


@pytest.mark.parametrize('training', [False, True])
def test_a_subnet_equals_its_export(supernet, training):
    net = copy.deepcopy(supernet)
    net.model.train(training)
    for seed in range(4):
        subnet = net.space.sample(random.Random(seed))
        static = net.export(subnet).train(training)
        formats = [memory_format_of(own.weight) for own in static.modules() if is_conv(own)]
        assert formats == [torch.channels_last] * 4
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


def test_narrow_weights_are_copied_once(supernet):
    """A view is made dense by the convolution; what is a copy already has to be as it wants it."""
    copies = {}
    with supernet.activate(supernet.space.smallest):
        for path, module in supernet.model.named_modules():
            if is_conv(module):
                weight, whole = module.weight, vars(module)['_parameters']['weight']
                copies[path] = weight.data_ptr() != whole.data_ptr()
                assert not copies[path] or memory_format_of(weight) is torch.channels_last, path
    assert copies == {'a.0': False, 'b.0': False, 'c.0': True, 'd.0': True}


@pytest.mark.parametrize('shape', [(2,), (3, 4), (3, 1, 1, 1), (3, 4, 1, 1), (3, 4, 2, 2)])
def test_others_are_as_they_are_counted(shape):
    assert memory_format_of(torch.zeros(shape)) is torch.contiguous_format
    assert memory_format_of(torch.zeros(*shape, 2)[..., 0]) is torch.contiguous_format
