"""The smallest networks that show what an operator does to channels."""

import copy

import torch
from torch import nn

from mmstp import ChannelGraph, Supernet
from tests.relations import Case, subnet_agrees_with_its_export, subnet_equals_its_export


class Net(nn.Module):
    """Layers, parameters and buffers by name, and a function of them and the input."""

    def __init__(self, members, function):
        super().__init__()
        for name, member in members.items():
            if isinstance(member, nn.Module):
                self.add_module(name, member)
            elif isinstance(member, nn.Parameter):
                self.register_parameter(name, member)
            else:
                self.register_buffer(name, member)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def conv(inner, outer, **options):
    return nn.Conv2d(inner, outer, 1, **options)


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


def analyse(layers, function, shape=(1, 3, 4, 4)):
    return ChannelGraph.from_model(Net(layers, function), [torch.randn(shape)])


def kept(graph, key, dim, group, units):
    """The positions along a tensor's dimension that stay with so many units of one group."""
    whole = [g.units for g in graph.groups]
    index = [g.name for g in graph.groups].index(group)
    whole[index] = units
    return graph.dims[key][dim].kept(whole).tolist()


def shapes(graph):
    """By name, units of each group and channels per unit."""
    return {group.name: (group.units, group.unit_size) for group in graph.groups}


def runs_as_subnet(layers, function, shape=(1, 3, 4, 4), others=(), exact=True, **options):
    """Makes a supernet, which checks it against the masked trace, and compares the export.

    With another batch than traced, and with inputs of the shapes in ``others``. No layer may have
    been found to fail when it is narrow: what the graph says is what the forward can live with.
    """
    model = Net(copy.deepcopy(layers), function).eval()
    supernet = Supernet(model, torch.randn(shape), **{'stem': True, 'divisor': 1, **options})
    assert not [reason for reason in supernet.graph.fixed.values() if 'narrowed' in reason]
    case = Case(supernet, [torch.randn(size) for size in ((2, *shape[1:]), *others)])
    (subnet_equals_its_export if exact else subnet_agrees_with_its_export)(case)
    return supernet
