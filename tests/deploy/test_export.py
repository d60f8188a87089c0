"""What an export holds, and that it is the subnet."""

import copy
import io
import json

import pytest
import torch
from mmengine.config import Config

from mmstp import Architecture
from mmstp.cli.launch import build_stp
from mmstp.deploy.export import (
    BACKBONE,
    CONFIG,
    DESCRIPTION,
    WEIGHTS,
    max_abs_difference,
    reload,
    write_export,
)
from mmstp.deploy.plan_file import PLAN
from mmstp.errors import CheckpointError, CompactSpecError, ExportError
from mmstp.registry import MODELS
from mmstp.subnets.compact_spec import CompactSpec
from mmstp.subnets.modules import DynamicMixin
from tests import tiny


@pytest.fixture(scope='module')
def stp():
    return tiny.stp()


@pytest.fixture(scope='module')
def architecture(stp):
    return stp.pool.best


@pytest.fixture(scope='module')
def folder(stp, architecture, tmp_path_factory):
    folder = tmp_path_factory.mktemp('export') / 'new'
    write_export(folder, stp.export(architecture), tiny.config(), stp, architecture)
    return folder


def test_reloaded_from_config_and_weights_it_is_the_subnet(stp, architecture, folder):
    network = reload(folder)
    assert max_abs_difference(stp.export(architecture), network, (2, 3, 16, 16)) == 0
    assert not any(isinstance(module, DynamicMixin) for module in network.modules())
    images, _ = tiny.batch()
    stp.eval()
    network.eval()
    with stp.supernet.activate(architecture), torch.no_grad():
        assert torch.equal(stp.model(images), network(images))


def test_weights_are_tensors_and_plain_types(folder):
    content = torch.load(folder / WEIGHTS, weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in content['state_dict'].values())
    # contiguous copies: a view would drag the dense tensor along
    for tensor in content['state_dict'].values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_description_counts_what_is_there(stp, architecture, folder):
    content = json.loads((folder / DESCRIPTION).read_text())
    network = reload(folder)
    assert Architecture.parse(content['architecture']) == architecture
    assert content['params'] == sum(p.numel() for p in network.parameters())
    assert content['layers']['head.fc'] == [10, network.head.fc.in_features]
    assert 'multiply-adds' in content['macs_convention']
    kept = sum(architecture.depths)
    blocks = {k.split('.conv')[0] for k in content['layers'] if 'layer' in k and '.conv' in k}
    assert len(blocks) == kept


def test_config_needs_neither_supernet_nor_search(folder):
    config = Config.fromfile(folder / CONFIG)
    assert config.model.type == 'ImageClassifier'
    assert config.model.backbone.type == 'mmstp.CompactBackbone'
    assert [hook.type for hook in config.custom_hooks] == ['mmstp.EpochSeedHook']
    assert config.default_hooks.checkpoint.save_best == 'accuracy/top1'


@pytest.mark.usefixtures('formatted')
@pytest.mark.parametrize('name', [CONFIG, BACKBONE])
def test_a_person_can_read_the_configs(name, stp, architecture, tmp_path):
    """A page: what it is, and nothing that is for machines."""
    network, cfg = stp.export(architecture), tiny.config()
    write_export(tmp_path, network, cfg, stp, architecture, 'epoch_12.pth')
    text = (tmp_path / name).read_text()
    assert text.startswith(f'# {architecture}: ')
    assert 'of epoch_12.pth by mmstp' in text
    assert len(text.splitlines()) < 180
    assert 'layer1.0' not in text


def test_the_plan_file_is_versioned(folder):
    content = json.loads((folder / PLAN).read_text())
    assert content['version'] == 2
    assert Architecture.parse(content['architecture']).depths
    assert list(content['parts']) == ['backbone']


def test_what_is_reloaded_is_saved_and_copied(folder):
    """It goes on being strict about its weights."""
    network = reload(folder)
    images, _ = tiny.batch()
    network.eval()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for found in (torch.load(file, weights_only=False), copy.deepcopy(network)):
        with torch.no_grad():
            assert torch.equal(found(images), network(images))
        with pytest.raises(CheckpointError, match='the weights do not fit this'):
            found.backbone.load_state_dict({}, strict=False)


def test_backbone_alone_takes_its_part_of_the_weights(folder):
    config = Config.fromfile(folder / CONFIG)
    backbone = MODELS.build(
        dict(
            config.model.backbone,
            frozen_stages=1,
            init_cfg=dict(type='Pretrained', checkpoint=str(folder / WEIGHTS), prefix='backbone.'),
        )
    )
    backbone.init_weights()
    whole = reload(folder).backbone
    for (name, a), b in zip(
        backbone.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    # the dense backbone's own options go on working
    backbone.train()
    assert not backbone.layer1[0].conv1.weight.requires_grad
    assert not backbone.layer1[0].bn1.training
    assert backbone.layer2[0].conv1.weight.requires_grad


def test_weights_of_another_architecture_are_an_error(stp, folder):
    other = next(a for a in stp.pool.scores if a != stp.pool.best)
    network = reload(folder)
    with pytest.raises(CheckpointError, match=r'in the checkpoint, .* here'):
        network.load_state_dict(stp.export(other).state_dict(), strict=False)


def test_spec_of_another_network_is_an_error(folder):
    config = Config.fromfile(folder / CONFIG).model.backbone
    config.backbone.depth = 50
    with pytest.raises(CompactSpecError, match=r'is not within the dense|has no'):
        MODELS.build(config)
    with pytest.raises(
        CompactSpecError, match=r"\['shapes'\]; expected shapes, calls, skipped, stages"
    ):
        CompactSpec.from_dict({'shapes': {}})


def test_the_config_of_another_network_is_an_error(tmp_path, stp, architecture):
    cfg = tiny.config(model__model__backbone__depth=34)
    with pytest.raises(ExportError, match=r'space\.fix.*\n.*backbone\.layer'):
        write_export(tmp_path, stp.export(architecture), cfg, stp, architecture)


HIDDEN = dict(
    type='StackedLinearClsHead', num_classes=10, in_channels=128, mid_channels=[64], topk=(1,),
    loss=dict(type='CrossEntropyLoss'),
)  # fmt: skip
VIT = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer', img_size=16, patch_size=4,
        arch=dict(embed_dims=32, num_layers=6, num_heads=4, feedforward_channels=64),
    ),
    head=dict(
        type='VisionTransformerClsHead', num_classes=10, in_channels=32, topk=(1,), hidden_dim=48,
        loss=dict(type='CrossEntropyLoss'), init_cfg=dict(type='Normal', layer='Linear', std=0.1),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    'options',
    [{'model.model.head': dict(HIDDEN, _delete_=True)}, {'model.model': dict(VIT, _delete_=True)}],
    ids=['head with a hidden layer', 'transformer'],
)
def test_other_networks_and_heads_are_reloaded(options, tmp_path):
    cfg = tiny.config(**{'model__target': 0.5, 'model__tolerance': 0.2})
    for name, value in options.items():
        value = {k: v for k, v in value.items() if k != '_delete_'}
        parent, _, key = name.rpartition('.')
        holder = cfg.model if parent == 'model' else cfg.model.model
        holder[key] = value
    stp = build_stp(cfg)
    stp.init_weights()
    architecture = stp.supernet.space.smallest
    network = stp.export(architecture)
    write_export(tmp_path, network, cfg, stp, architecture)
    assert max_abs_difference(network, reload(tmp_path), (2, 3, 16, 16)) == 0
    compact = Config.fromfile(tmp_path / CONFIG).model
    assert compact.backbone.type == 'mmstp.CompactBackbone'
    assert compact.head.type == 'mmstp.CompactPart'
