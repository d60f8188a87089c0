"""The weight-sharing backbone: any subnet, at any time, with norm statistics of its own."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmstp import Architecture, calibrate
from mmstp.deploy.dynamic_backbone import DynamicBackboneMixin
from mmstp.errors import (
    ArchitectureError,
    CheckpointError,
    FieldError,
    StatisticsError,
    SupernetError,
)
from mmstp.registry import build_model
from mmstp.subnets.modules import DynamicMixin
from tests.networks import randomize

RESNET = dict(type='mmpretrain.ResNet', depth=18, base_channels=32, stem_channels=32)
SMALL = Architecture((1, 2, 1, 2), (0.5, 0.3, 0.7, 0.5))
OTHER = Architecture((2, 1, 2, 1), (0.3, 0.5, 0.5, 1.0))


def build(backbone=RESNET, **options):
    config = dict(type='mmstp.DynamicBackbone', backbone=backbone, input_shape=(3, 64, 64))
    return build_model({**config, 'out_indices': (0, 1, 2, 3), **options})


@pytest.fixture(scope='module')
def made():
    torch.manual_seed(0)
    network = build()
    randomize(network)
    network.eval()
    return network


@pytest.fixture
def network(made):
    """A copy, as tests change it."""
    return copy.deepcopy(made)


def batches(count=3):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 3, 64, 64, generator=generator) for _ in range(count)]


X = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_it_is_the_dense_backbone_with_its_keys(network):
    dense = build_model({**RESNET, 'out_indices': (0, 1, 2, 3)})
    assert isinstance(network, type(dense))
    assert isinstance(network, DynamicBackboneMixin)
    assert list(network.state_dict()) == list(dense.state_dict())
    dense.load_state_dict(network.state_dict())
    dense.eval()
    assert network.architecture == network.supernet.space.largest
    with torch.no_grad():
        assert all(map(torch.equal, network(X), dense(X)))


def test_a_subnet_gives_what_its_export_gives(network):
    """Padded with zeros to the dense channels, or as narrow as it is."""
    network.architecture = SMALL
    network.calibrate(batches())
    export = network.supernet.export(SMALL)
    assert not any(isinstance(module, DynamicMixin) for module in export.modules())
    assert not hasattr(export, 'supernet')
    with torch.no_grad():
        padded, expected = network(X), export(X)
        assert [out.shape[1] for out in padded] == [32, 64, 128, 256]
        for wide, narrow in zip(padded, expected, strict=True):
            assert torch.equal(wide[:, : narrow.shape[1]], narrow)
            assert not wide[:, narrow.shape[1] :].any()
        network.pad = False
        assert all(map(torch.equal, network(X), expected))


def test_padding_is_exact_for_what_reads_the_features(network):
    """A neck built for the dense channels computes what one cut to the subnet's does."""
    network.architecture = SMALL
    network.calibrate(batches())
    neck = nn.Conv2d(256, 8, 1).double()
    with torch.no_grad():
        wide = network(X)[3].double()
        network.pad = False
        narrow = network(X)[3].double()
        cut = nn.functional.conv2d(narrow, neck.weight[:, : narrow.shape[1]], neck.bias)
        torch.testing.assert_close(neck(wide), cut)


def test_positions_that_are_no_prefix_are_padded_in_place():
    """In a network that concatenates, what is left of the output lies scattered."""
    arch = dict(growth_rate=16, depths=[2, 2], init_channels=32)
    network = build(dict(type='mmpretrain.DenseNet', arch=arch), out_indices=(1,))
    randomize(network)
    network.eval()
    network.architecture = network.supernet.space.smallest
    network.calibrate(batches())
    with torch.no_grad():
        (wide,) = network(X)
        network.pad = False
        (narrow,) = network(X)
    dim_map = network.supernet.graph.traced[0].outputs[0][1]
    units = network.supernet._units(network.architecture)
    positions = torch.from_numpy(dim_map.kept(units))
    assert positions[-1] >= len(positions)
    assert torch.equal(wide[:, positions], narrow)
    wide[:, positions] = 0
    assert not wide.any()


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='mmpretrain.VisionTransformer', img_size=64, patch_size=16, out_type='featmap',
             arch=dict(embed_dims=64, num_layers=6, num_heads=4, feedforward_channels=128)),
        dict(type='mmpretrain.SwinTransformer', img_size=64, window_size=4,
             arch=dict(embed_dims=32, depths=[2, 2], num_heads=[2, 4])),
    ],
    ids=lambda config: config['type'],
)  # fmt: skip
def test_transformers(backbone):
    """Their root holds tensors or calls of its own, so that it is dynamic twice."""
    network = build(backbone, out_indices=(0, 1))
    randomize(network)
    network.eval()
    network.architecture = network.supernet.space.smallest
    export = network.supernet.export(network.architecture)
    assert type(export).__name__ == backbone['type'].partition('.')[2]
    assert not any(isinstance(module, DynamicMixin) for module in export.modules())
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        found, expected = network(x), export(x)
        assert len(found) == len(expected) == 2
        assert all(map(torch.equal, found, expected))  # the embedding is whole
        copied = copy.deepcopy(network)
        assert all(map(torch.equal, copied(x), expected))


# --- switching ------------------------------------------------------------------------------------


def test_switching_there_and_back(network):
    with torch.no_grad():
        dense = network(X)
        found = {}
        for architecture in (SMALL, OTHER):
            network.architecture = str(architecture)
            network.calibrate(batches())
            found[architecture] = network(X)
        network.architecture = SMALL
        assert all(map(torch.equal, network(X), found[SMALL]))
        with network.activate(OTHER):
            assert network.architecture == OTHER
            assert all(map(torch.equal, network(X), found[OTHER]))
        assert network.architecture == SMALL
        with pytest.raises(KeyError), network.activate(OTHER):
            raise KeyError
        assert network.architecture == SMALL
        network.architecture = None
        assert all(map(torch.equal, network(X), dense))  # the main network's are untouched


def test_the_architecture_of_the_config(made):
    network = build(architecture=((1, 2, 1, 2), (0.5, 0.3, 0.7, 0.5)))
    assert network.architecture == SMALL
    with pytest.raises(ArchitectureError, match=r"stage 'layer2' cannot keep 9 blocks"):
        build(architecture='((1, 9, 1, 2), (0.5, 0.3, 0.7, 0.5))')
    with pytest.raises(ArchitectureError, match=r'cannot keep 0\.6 of its channels; choices'):
        made.architecture = '((1, 2, 1, 2), (0.6, 0.3, 0.7, 0.5))'
    assert made.architecture == made.supernet.space.largest


def test_copies_are_apart(network):
    """EMAHook copies models."""
    network.architecture = SMALL
    network.calibrate(batches())
    other = copy.deepcopy(network)
    assert other.supernet.model is other
    with torch.no_grad():
        assert all(map(torch.equal, network(X), other(X)))
        other.conv1.weight.mul_(2)
        other.architecture = None
        assert network.architecture == SMALL
        assert not torch.equal(network(X)[0], other(X)[0])


# --- norm statistics ------------------------------------------------------------------------------


def test_without_norm_statistics_of_its_own_a_subnet_is_an_error(network):
    network.architecture = SMALL
    with pytest.raises(StatisticsError, match=r'^bn1 is in eval mode .*mmstp\.CalibrationHook'):
        network(X)
    network.train()
    network(X)  # with those of the batch
    network.norm_eval = True
    network.train()
    with pytest.raises(StatisticsError):
        network(X)


def test_norm_statistics_are_those_of_a_calibrated_export(network):
    """Two ways to the same numbers."""
    network.architecture = SMALL
    before = {k: v.clone() for k, v in network.state_dict().items()}
    export = network.supernet.export(SMALL)
    count = calibrate(export, batches())
    assert network.calibrate(batches()) == count
    with torch.no_grad():
        network.pad = False
        assert all(map(torch.equal, network(X), export(X)))
    again = network.supernet.export(SMALL)
    assert all(map(torch.equal, again.state_dict().values(), export.state_dict().values()))
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_subnet_in_training_updates_its_own_norm_statistics(network):
    """As its export does; those of the main network stay."""
    network.architecture = SMALL
    network.calibrate(batches())
    export = network.supernet.export(SMALL)
    before = {k: v.clone() for k, v in network.state_dict().items() if 'running' in k}
    for model in (network, export):
        model.train()
        model(X)
        model.eval()
    network.pad = False
    with torch.no_grad():
        assert all(map(torch.equal, network(X), export(X)))
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_networks_without_norm_statistics_need_none():
    backbone = dict(RESNET, norm_cfg=dict(type='GN', num_groups=8))
    network = build(backbone, space=dict(divisor=8))
    network.eval()
    network.architecture = network.supernet.space.smallest
    with torch.no_grad():
        assert len(network(X)) == 4


def test_gradients_reach_the_subnet_alone(network):
    network.architecture = SMALL
    network.train()
    sum(out.square().mean() for out in network(X)).backward()
    assert network.layer2[0].conv1.weight.grad[24:].abs().sum() == 0  # 0.3 of 64, rounded up
    assert network.layer2[0].conv1.weight.grad[:24].abs().sum() > 0
    assert all(p.grad is None for p in network.layer1[1].parameters())


# --- options and weights --------------------------------------------------------------------------


def test_the_dense_backbone_s_options():
    network = build(frozen_stages=1, norm_eval=True)
    network.train()
    assert not network.layer1[0].conv1.weight.requires_grad
    assert network.layer2[0].conv1.weight.requires_grad
    assert not any(m.training for m in network.modules() if isinstance(m, _BatchNorm))
    with pytest.raises(SupernetError, match='with_cp=True'):
        build(with_cp=True)
    with pytest.raises(FieldError, match=r"backbone\.space has no field 'width'"):
        build(space=dict(width=(0.5,)))


def test_weights_of_the_main_network(made, tmp_path):
    """As the checkpoint of an STP run holds them."""
    weights = {f'model.backbone.{key}': value for key, value in made.state_dict().items()}
    torch.save({'state_dict': {**weights, 'model.head.fc.weight': torch.ones(1)}}, tmp_path / 'a')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a'), prefix='model.backbone.')
    network = build(init_cfg=init_cfg, architecture=SMALL)
    network.init_weights()
    assert all(map(torch.equal, network.state_dict().values(), made.state_dict().values()))
    wrong = build(init_cfg={**init_cfg, 'prefix': 'backbone.'})
    with pytest.raises(AssertionError, match=r'backbone\. is not in the pretrained model'):
        wrong.init_weights()
    narrow = made.supernet.export(SMALL).state_dict()
    with pytest.raises(CheckpointError, match=r'the dense one: in a checkpoint of an STP run'):
        network.load_state_dict(narrow, strict=False)


def test_in_a_classifier_the_head_of_the_main_network_serves(made):
    """Zeros in place of the channels left out: the linear layer reads the rest."""
    rng = random.Random(2)
    network = build(out_indices=(3,))
    network.load_state_dict(made.state_dict())
    head = nn.Linear(256, 10).double()
    for _ in range(2):
        network.architecture = network.supernet.space.sample(rng)
        network.calibrate(batches())
        network.eval()
        with torch.no_grad():
            wide, narrow = (
                model(X)[0].double()
                for model in (network, network.supernet.export(network.architecture))
            )
            logits = head(wide.mean((2, 3)))
            cut = narrow.mean((2, 3)) @ head.weight[:, : narrow.shape[1]].T + head.bias
        torch.testing.assert_close(logits, cut)
