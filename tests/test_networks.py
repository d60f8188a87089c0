"""Every relation over every network, and what holds for some kinds of networks alone."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.networks import ALL, equal, images, names, tensors
from tests.relations import RELATIONS, Case, some


@pytest.fixture(scope='session')
def case_of(supernet_of, dense_of):
    """A network by name, with inputs of two batches and two sizes and three architectures."""

    @functools.cache
    def case(name):
        supernet = supernet_of(name)
        inputs = [images(name), images(name, batch=1)]
        if ALL[name].other:
            inputs.append(images(name, size=ALL[name].other))
        return Case(supernet, inputs, some(supernet.space), functools.partial(dense_of, name))

    return case


@pytest.mark.parametrize('name', names(ALL))
@pytest.mark.parametrize('relation', RELATIONS, ids=lambda relation: relation.__name__)
def test_holds(relation, name, case_of):
    relation(case_of(name))


# --- of some networks -----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize('name', ['resnet18', 'resnext', 'seresnet', 'densenet', 'mobilenet_v2'])
def test_subnet_equals_its_export_in_train_mode(name, case_of):
    """Batch statistics are those of the subnet's own channels."""
    case, x = case_of(name), images(name, batch=8)
    architecture = case.architectures[1]
    network = case.supernet.export(architecture)
    case.supernet.model.train(), network.train()
    try:
        dynamic = case.narrow(architecture, x)
    finally:
        case.supernet.model.eval()
    assert equal(dynamic, network(x))


@pytest.mark.parametrize('name', names())
def test_there_are_widths_and_mostly_depths(name, supernet_of):
    """VGG and DenseNet have no block around which a way leads."""
    stages = supernet_of(name).space.stages
    assert all(len(stage.widths) > 1 for stage in stages)
    assert any(len(stage.depths) > 1 for stage in stages) != name.startswith(('vgg', 'densenet'))


# --- masked by hand -------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize('name', names())
def test_slicing_equals_masking_by_hand(name, case_of):
    """The dense network with what was dropped at zero, where layers keep their first channels."""
    case, x = case_of(name), images(name).double()
    for architecture in case.architectures[:2]:
        network = case.supernet.export(architecture).double()
        plan = case.supernet._plan(architecture)
        masked = mask(name, case.dense(), network, plan).double()
        for actual, expected in zip(tensors(network(x)), tensors(masked(x)), strict=True):
            torch.testing.assert_close(
                actual, expected, rtol=0, atol=1e-10 * expected.abs().max().item()
            )


def mask(name, dense, network, plan):
    """Lets the dense network compute what the smaller one should.

    The first channels of every layer stay, the others become zero; how many, the smaller network's
    weights say. Only DenseNets normalise several layers' channels, one behind the other: which of
    those stay is in the plan.
    """
    small = dict(network.named_modules())
    for path, module in list(dense.named_modules()):
        if path not in small:  # inside a block that is gone
            continue
        if [*module.parameters()] and not [*small[path].parameters()]:  # a block that is gone
            module.forward = lambda x: x
        elif isinstance(module, _BatchNorm) and name.startswith('densenet'):
            for selection in plan.tensors.get(f'{path}.weight', ()):
                module.register_forward_hook(keep_only(selection.positions))
        elif isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm):
            kept = len(small[path].weight)
            module.register_forward_hook(keep_first(kept, parts(name, path, dense, network)))
    return dense


def keep_first(kept, parts):
    def hook(module, args, output):
        split = output.unflatten(1, (parts, -1)).clone()
        split[:, :, kept // parts :] = 0
        return split.flatten(1, 2)

    return hook


def keep_only(positions):
    def hook(module, args, output):
        kept = torch.zeros_like(output)
        kept[:, positions] = output[:, positions]
        return kept

    return hook


def parts(name, path, dense, network):
    """Into how many parts the output falls that each keep their first channels."""
    block, _, layer = path.rpartition('.')
    if name == 'res2net' and layer in ('conv1', 'bn1') and '.layer' in block:
        return dense.get_submodule(block).scales
    if name == 'regnet' and layer in ('conv1', 'bn1', 'conv2', 'bn2') and '.layer' in block:
        path = f'{block}.conv2'  # either whole groups go, or the same channels of every group
        groups = dense.get_submodule(path).groups, network.get_submodule(path).groups
        return groups[0] if groups[0] == groups[1] else 1
    return 1
