"""A compact network from its description alone: dense class, plan, weights; nothing traced."""

import json
import random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmstp import Architecture, CompactSpec, Supernet
from mmstp.errors import CompactSpecError
from mmstp.subnets.attributes import attributes_of
from mmstp.subnets.cut import compact, count_macs, count_parameters
from tests.networks import TINY_INPUT, build, equal, images, names, tiny

SMALL = Architecture((2, 1), (0.5, 0.3))


@pytest.fixture(scope='module')
def supernet():
    return Supernet(tiny(), TINY_INPUT)


def through_json(plan):
    return CompactSpec.from_dict(json.loads(json.dumps(plan.to_dict())))


@pytest.mark.parametrize('name', names())
def test_rebuilt_equals_the_export(name, supernet_of):
    supernet, x = supernet_of(name), images(name)
    for architecture in (supernet.space.smallest, supernet.space.sample(random.Random(1))):
        export = supernet.export(architecture)
        plan = through_json(supernet.compact_spec(architecture))
        assert plan == supernet.compact_spec(architecture)
        network = build(name)
        compact(network, plan)
        network.load_state_dict(export.state_dict())
        with torch.no_grad():
            assert equal(network(x), export(x))
        for (path, module), (other, expected) in zip(
            network.named_modules(), export.named_modules(), strict=True
        ):
            assert (path, type(module)) == (other, type(expected))


def test_plan_of_the_dense_network_is_empty(supernet):
    plan = supernet.compact_spec(supernet.space.largest)
    assert plan.shapes == {}
    assert plan.calls == {}
    assert plan.skipped == ()
    for module in tiny().modules():
        for name, value in attributes_of(module).items():
            assert getattr(module, name) == value


def test_without_weights_it_starts_with_the_first_part(supernet):
    """Which is what the export of an untrained network is, where channels are kept as a prefix."""
    network = tiny()
    compact(network, supernet.compact_spec(SMALL))
    export = supernet.export(SMALL)
    assert equal(network(TINY_INPUT + 1), export(TINY_INPUT + 1))
    network.stem[0].weight.data.zero_()
    assert supernet.model.stem[0].weight.any()


@pytest.mark.parametrize('training', [False, True])
def test_mode_stays(training, supernet):
    network = tiny()
    network.train(training)
    compact(network, supernet.compact_spec(SMALL))
    assert {module.training for module in network.modules()} == {training}


def test_frozen_parameters_stay_frozen(supernet):
    network = tiny()
    network.stage2[0].weight.requires_grad_(False)
    compact(network, supernet.compact_spec(SMALL))
    assert not network.stage2[0].weight.requires_grad
    assert network.stage1[0].weight.requires_grad
    assert isinstance(network.stage2[0].weight, nn.Parameter)


def test_plan_of_a_part_describes_that_part(supernet):
    plan = supernet.compact_spec(SMALL)
    export = supernet.export(SMALL)
    part = tiny().stage1
    compact(part, plan.within('stage1'))
    part.load_state_dict(export.stage1.state_dict())
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(part(x), export.stage1(x))
    assert plan.within('stage') == CompactSpec({}, {}, ())  # a path, not a prefix


# --- the architecture of a network, by its shapes ------------------------------------------------


def shapes(network):
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize('name', names())
def test_architectures_are_read_off_shapes(name, supernet_of):
    """Of any network of the space, by the plan of another; where no two widths are one."""
    supernet = supernet_of(name)
    rng = random.Random(3)
    plan = through_json(supernet.compact_spec(supernet.space.sample(rng)))
    for architecture in (*(supernet.space.sample(rng) for _ in range(2)), supernet.space.largest):
        found = plan.architecture(shapes(supernet.export(architecture)))
        assert found is not None
        assert found.contains(architecture)
        assert found.depths == architecture.depths
        for stage, width, own in zip(plan.stages, found.widths, architecture.widths, strict=True):
            sizes = dict(stage.widths)
            assert not sizes or sizes[width] == sizes[own]


def test_what_is_no_architecture_is_not_taken_for_one(supernet):
    plan = supernet.compact_spec(SMALL)
    dense = shapes(tiny())
    assert plan.architecture(dense) == supernet.space.largest
    without_first = {k: v for k, v in dense.items() if not k.startswith('stage1.1.')}
    assert plan.architecture(without_first) is None
    odd = {**dense, plan.stages[0].tensor: (7, 7, 1, 1)}
    assert plan.architecture(odd) is None
    assert plan.architecture({}) is None


PLAN = dict(shapes={}, calls={}, skipped=(), stages=())


@pytest.mark.parametrize(
    ('plan', 'message'),
    [
        (dict(PLAN, shapes={'body.weight': (1,)}), "Tiny has no 'body.weight'"),
        (dict(PLAN, shapes={'head.scale': (1,)}), "Tiny has no tensor 'head.scale'"),
        (dict(PLAN, shapes={'stage1.1.conv1.bias': (1,)}), "no tensor 'stage1.1.conv1.bias'"),
        (dict(PLAN, shapes={'head.bias': (6,)}), r'head\.bias: shape \(6,\) is not within .* \(5,'),
        (dict(PLAN, shapes={'head.bias': (1, 1)}), r'shape \(1, 1\) is not within the dense \(5,'),
        (dict(PLAN, calls={'body': [[['reshape', [4], [2], []]]]}), "Tiny has no 'body'"),
        (dict(PLAN, skipped=('stage3.1',)), "Tiny has no 'stage3.1'"),
        (dict(PLAN, skipped=('stage1.7',)), "Tiny has no 'stage1.7'"),
    ],
)
def test_plans_of_other_networks_are_refused(plan, message):
    with pytest.raises(CompactSpecError, match=message):
        compact(tiny(), CompactSpec.from_dict(plan))


@pytest.mark.parametrize(
    'fields', [dict(PLAN, sizes={}), {'shapes': {}, 'skipped': ()}, dict(PLAN, version=1), {}, None]
)
def test_other_fields_are_refused(fields):
    with pytest.raises(CompactSpecError, match=r'plan has the fields .*; expected shapes'):
        CompactSpec.from_dict(fields)


def test_counts_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 5, bias=False))
    assert count_parameters(network) == 3 * 8 * 9 + 8 + 128 * 5
    assert count_macs(network, (torch.zeros(2, 3, 6, 6),)) == 2 * (16 * 3 * 8 * 9 + 128 * 5)
    network.train()
    count_macs(network, (torch.zeros(1, 3, 6, 6),))
    assert all(module.training for module in network.modules())


def test_counts_equal_those_of_the_table(supernet):
    export = supernet.export(SMALL)
    assert count_parameters(export) == supernet.cost.params([SMALL])
    assert count_macs(export, (TINY_INPUT,)) == supernet.cost.macs([SMALL])
    with FlopCounterMode(display=False) as counter:
        export(TINY_INPUT)
    assert 2 * count_macs(export, (TINY_INPUT,)) == counter.get_total_flops()
