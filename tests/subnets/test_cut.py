"""A compact network from its description alone: dense class, spec, weights; nothing traced."""

import pytest
import torch
from torch import nn

from mmstp import Architecture, CompactSpec, Supernet
from mmstp.errors import CompactSpecError
from mmstp.subnets.attributes import attributes_of
from mmstp.subnets.cut import compact, count_macs, count_parameters
from tests.networks import TINY_INPUT, equal, tiny
from tests.relations import Case, costs_are_those_of_the_export

SMALL = Architecture((2, 1), (0.5, 0.3))


@pytest.fixture(scope='module')
def supernet():
    return Supernet(tiny(), TINY_INPUT)


def test_spec_of_the_dense_network_is_empty(supernet):
    spec = supernet.compact_spec(supernet.space.largest)
    assert spec.shapes == {}
    assert spec.calls == {}
    assert spec.skipped == {}
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


def test_kept_entries_are_those_of_the_export(supernet):
    kept, dense = supernet.kept(SMALL), supernet.model.state_dict()
    export = supernet.export(SMALL).state_dict()
    assert kept.keys() == dense.keys()
    assert {key for key, entries in kept.items() if entries.any()} == export.keys()
    for key, tensor in export.items():
        assert torch.equal(dense[key][kept[key]], tensor.flatten()), key


def test_spec_of_a_part_describes_that_part(supernet):
    spec = supernet.compact_spec(SMALL)
    export = supernet.export(SMALL)
    part = tiny().stage1
    compact(part, spec.within('stage1'))
    part.load_state_dict(export.stage1.state_dict())
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(part(x), export.stage1(x))
    assert spec.within('stage') == CompactSpec({}, {}, {})  # a path, not a prefix


# --- the architecture of a network, by its shapes ------------------------------------------------


def shapes(network):
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def test_what_is_no_architecture_is_not_taken_for_one(supernet):
    spec = supernet.compact_spec(SMALL)
    dense = shapes(tiny())
    assert spec.architecture(dense) == supernet.space.largest
    without_first = {k: v for k, v in dense.items() if not k.startswith('stage1.1.')}
    assert spec.architecture(without_first) is None
    odd = {**dense, spec.stages[0].tensor: (7, 7, 1, 1)}
    assert spec.architecture(odd) is None
    assert spec.architecture({}) is None


SPEC = dict(shapes={}, calls={}, skipped={}, stages=())


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        (dict(SPEC, shapes={'body.weight': (1,)}), "Tiny has no 'body.weight'"),
        (dict(SPEC, shapes={'head.scale': (1,)}), "Tiny has no tensor 'head.scale'"),
        (dict(SPEC, shapes={'stage1.1.conv1.bias': (1,)}), "no tensor 'stage1.1.conv1.bias'"),
        (dict(SPEC, shapes={'head.bias': (6,)}), r'head\.bias: shape \(6,\) is not within .* \(5,'),
        (dict(SPEC, shapes={'head.bias': (1, 1)}), r'shape \(1, 1\) is not within the dense \(5,'),
        (dict(SPEC, calls={'body': [[['reshape', [4], [2], []]]]}), "Tiny has no 'body'"),
        (dict(SPEC, skipped={'stage3.1': {'argument': ['x']}}), "Tiny has no 'stage3.1'"),
        (dict(SPEC, skipped={'stage1.7': {'argument': ['x']}}), "Tiny has no 'stage1.7'"),
    ],
)
def test_specs_of_other_networks_are_refused(spec, message):
    with pytest.raises(CompactSpecError, match=message):
        compact(tiny(), CompactSpec.from_dict(spec))


@pytest.mark.parametrize(
    'fields', [dict(SPEC, sizes={}), {'shapes': {}, 'skipped': {}}, dict(SPEC, version=1), {}, None]
)
def test_other_fields_are_refused(fields):
    with pytest.raises(CompactSpecError, match=r'plan has the fields .*; expected shapes'):
        CompactSpec.from_dict(fields)


@pytest.mark.parametrize(
    'result',
    ['x', {}, {'argument': []}, {'argument': [0]}, {'tuple': ['x']}, {'value': 3}, {'set': []}],
)
def test_other_results_of_blocks_are_refused(result):
    with pytest.raises(CompactSpecError, match=r"skipped\['stage1\.1'\] is .*: expected what the "):
        CompactSpec.from_dict(dict(SPEC, skipped={'stage1.1': result}))


def test_counts_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 5, bias=False))
    assert count_parameters(network) == 3 * 8 * 9 + 8 + 128 * 5
    assert count_macs(network, (torch.zeros(2, 3, 6, 6),)) == 2 * (16 * 3 * 8 * 9 + 128 * 5)
    network.train()
    count_macs(network, (torch.zeros(1, 3, 6, 6),))
    assert all(module.training for module in network.modules())


def test_counts_equal_those_of_the_table(supernet):
    costs_are_those_of_the_export(Case(supernet, [], [SMALL]))
