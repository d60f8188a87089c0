"""Compact backbones: the classifier's features, the dense backbone's options, strict weights."""

import random

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmstp.deploy.compact_model import set_init_cfg
from mmstp.errors import CheckpointError, CompactSpecError
from mmstp.registry import build_model, scoped
from tests.networks import ALL, backbone_config, equal, names, tensors

BACKBONES = [name for name in ALL if backbone_config(name)]

# --- the classifier's features, for every network ------------------------------------------------


@pytest.fixture
def exported(supernet_of):
    """A classifier's supernet with a subnet and the config of its compact backbone, by name."""

    def get(name):
        supernet = supernet_of(name)
        architecture = supernet.space.sample(random.Random(1))
        if architecture == supernet.space.largest:
            architecture = supernet.space.smallest
        spec = supernet.compact_spec(architecture).within('backbone').to_dict()
        backbone = scoped(backbone_config(name), 'mmpretrain')
        config = dict(type='mmstp.CompactBackbone', backbone=backbone, plan=spec)
        return supernet, architecture, config

    return get


def weights_of(supernet, architecture):
    return supernet.export(architecture).backbone.state_dict()


@pytest.mark.filterwarnings('ignore:Unnecessary conv bias before batch/instance norm')
@pytest.mark.filterwarnings('ignore:In MMCV v1.4.4, we modified the default value')
@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
@pytest.mark.parametrize('name', names(BACKBONES))
def test_features_are_the_subnet_s(name, scope, exported):
    """Built in either library, of any size: equal to the active subnet and to its export."""
    supernet, architecture, config = exported(name)
    export = supernet.export(architecture).backbone
    network = build_model(config, scope)
    network.load_state_dict(export.state_dict(), strict=name != 'swin_v2')  # works tables out
    network.eval()
    side, other = ALL[name].size, ALL[name].other
    shapes = [(2, 3, side, side)] + [(1, 3, other, side)] * (scope == 'mmdet' and other > 0)
    with torch.no_grad():
        for shape in shapes:
            x = torch.randn(shape)
            found = network(x)
            with supernet.activate(architecture):
                active = supernet.model.backbone(x)
            assert equal(found, active)
            assert equal(found, export(x))
            assert tensors(found)


def test_mmdet_s_resnet_is_mmpretrain_s(exported):
    """The keys are the same, so a config may name either."""
    supernet, architecture, config = exported('resnet50')
    weights = weights_of(supernet, architecture)
    x = torch.randn(1, 3, 64, 96)
    features = []
    for kind in ('mmpretrain.ResNet', 'mmdet.ResNet'):
        backbone = {**config['backbone'], 'type': kind, 'out_indices': (0, 1, 2, 3)}
        network = build_model({**config, 'backbone': backbone})
        network.load_state_dict(weights)
        network.eval()
        with torch.no_grad():
            features.append(network(x))
        assert type(network).__module__.startswith(kind.partition('.')[0])
    assert all(map(torch.equal, *features))


# --- the dense backbone's options -----------------------------------------------------------------


@pytest.fixture
def resnet(exported):
    """Builds the compact ResNet-50 with options, with the weights of the export."""
    supernet, architecture, config = exported('resnet50')
    weights = weights_of(supernet, architecture)

    def build(**options):
        network = build_model({**config, **options})
        network.load_state_dict(weights)
        return network

    return build


def test_outputs_of_every_stage(resnet):
    network = resnet(out_indices=(0, 1, 2, 3))
    network.eval()
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        outputs = network(x)
    assert [tuple(out.shape[2:]) for out in outputs] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    for i, stage in enumerate(('layer1', 'layer2', 'layer3', 'layer4')):
        last = [m for m in getattr(network, stage) if hasattr(m, 'conv3')][-1]
        assert outputs[i].shape[1] == last.conv3.out_channels
    only = resnet(out_indices=(1,))
    only.eval()
    with torch.no_grad():
        assert torch.equal(only(x)[0], outputs[1])


def test_frozen_stages_and_norms_in_eval_mode(resnet):
    network = resnet(frozen_stages=2, norm_eval=True)
    network.train()
    frozen = {k.partition('.')[0] for k, p in network.named_parameters() if not p.requires_grad}
    trained = {k.partition('.')[0] for k, p in network.named_parameters() if p.requires_grad}
    assert frozen == {'conv1', 'bn1', 'layer1', 'layer2'}
    assert trained == {'layer3', 'layer4'}
    assert not any(m.training for m in network.modules() if isinstance(m, _BatchNorm))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    sum(out.sum() for out in network(torch.randn(2, 3, 64, 64))).backward()
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # no norm statistics changed


def test_norm_eval_where_the_class_has_no_such_option(exported):
    supernet, architecture, config = exported('densenet')
    network = build_model({**config, 'norm_eval': True})
    network.load_state_dict(weights_of(supernet, architecture))
    network.train()
    assert network.training
    assert not any(m.training for m in network.modules() if isinstance(m, _BatchNorm))
    assert network.stages[0].training


def test_synchronised_norms_are_the_same_network(resnet):
    network = resnet(norm_cfg=dict(type='SyncBN', requires_grad=False))
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())
    network.eval()
    plain = resnet()
    plain.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(x)[0], plain(x)[0])


@pytest.mark.filterwarnings('ignore:torch.utils.checkpoint. the use_reentrant parameter')
@pytest.mark.filterwarnings('ignore:None of the inputs have requires_grad')
@pytest.mark.parametrize('name', ['resnet50', 'mobilenet_v2', 'swin', 'wrn16_2'])
def test_recomputed_blocks_have_the_same_gradients(name, exported):
    """``with_cp``: also where sizes are supplied to a forward that runs again in the backward."""
    supernet, architecture, config = exported(name)
    weights = weights_of(supernet, architecture)
    x = torch.randn(2, 3, 64, 64)
    found = []
    for with_cp in (False, True):
        network = build_model({**config, 'with_cp': with_cp})
        network.load_state_dict(weights, strict=False)
        network.train()
        for module in network.modules():
            if isinstance(module, nn.Dropout) or type(module).__name__ == 'DropPath':
                module.eval()
        images = x.clone().requires_grad_()
        sum(out.square().mean() for out in network(images)).backward()
        found.append([images.grad, *(p.grad for p in network.parameters())])
    assert all(a is not None and torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_options_that_do_not_exist_are_refused(exported):
    with pytest.raises(TypeError, match=r"ResNet.*unexpected keyword argument 'frozen_stage'"):
        build_model({**exported('resnet50')[2], 'frozen_stage': 1})


@pytest.mark.parametrize('name', ['swin', 'convnext'])
def test_norms_of_further_outputs_start_as_they_are_built(name, exported):
    """The classifier has one norm; with more outputs there are more, without weights."""
    supernet, architecture, config = exported(name)
    export = supernet.export(architecture).backbone
    (last,) = export.out_indices
    first = 0
    network = build_model({**config, 'out_indices': (first, last)})
    network.load_state_dict(export.state_dict(), strict=False)
    network.eval()
    assert (getattr(network, f'norm{first}').weight == 1).all()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(x)[1], export(x)[0])
    # ... and with fewer there are fewer
    network = build_model({**config, 'out_indices': (first,)})
    network.load_state_dict(export.state_dict(), strict=False)
    with pytest.raises(CheckpointError, match=r'patch_embed|downsample_layers'):
        network.load_state_dict({}, strict=False)


# --- strict weights -------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(exported, tmp_path):
    """A classifier's checkpoint, as an export holds it."""
    supernet, architecture, _ = exported('resnet50')
    weights = supernet.export(architecture).state_dict()
    torch.save({'state_dict': {**weights, 'head.fc.weight': torch.zeros(1)}}, tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


def pretrained(exported, checkpoint, **options):
    config = exported('resnet50')[2]
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint, **options)
    return build_model({**config, 'init_cfg': init_cfg})


@pytest.mark.parametrize('prefix', ['backbone.', 'backbone'])
def test_pretrained_weights_are_loaded(prefix, exported, checkpoint):
    network = pretrained(exported, checkpoint, prefix=prefix)
    network.init_weights()
    supernet, architecture, _ = exported('resnet50')
    expected = weights_of(supernet, architecture)
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_a_wrong_prefix_stops_and_is_named(exported, checkpoint):
    network = pretrained(exported, checkpoint, prefix='bakbone.')
    with pytest.raises(AssertionError, match=r'bakbone\. is not in the pretrained model'):
        network.init_weights()


def test_weights_that_would_not_be_loaded_are_refused():
    with pytest.raises(TypeError, match=r'Linear has no init_weights\(\), which would load it'):
        set_init_cfg(nn.Linear(2, 2), dict(type='Pretrained', checkpoint='a.pth'))


def test_a_missing_prefix_stops_and_is_named(exported, checkpoint):
    network = pretrained(exported, checkpoint)
    with pytest.raises(CheckpointError, match=r"load them with prefix='backbone\.'"):
        network.init_weights()


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, mmengine_load_state_dict])
def test_weights_of_another_architecture_stop_and_both_are_named(load, exported):
    """Also inside a detector, where MMEngine's loader is not strict."""
    supernet, architecture, config = exported('resnet50')
    whole = nn.ModuleDict({'backbone': build_model(config)})
    own = str(supernet.compact_spec(architecture).within('backbone').architecture(
        {k: tuple(v.shape) for k, v in whole['backbone'].state_dict().items()}
    ))  # fmt: skip
    for other in (supernet.space.smallest, supernet.space.largest):
        weights = supernet.export(other).state_dict()
        with pytest.raises(CheckpointError) as error:
            load(whole, weights)
        text = str(error.value)
        assert text.startswith('the weights do not fit this ResNet (backbone):\n  ')
        assert 'in the checkpoint, ' in text
        assert f'This network is {own}, the weights are {other}.' in text
    with pytest.raises(CheckpointError, match=r'the weights are none of its architectures'):
        load(whole, {'backbone.conv1.weight': torch.zeros(3)})


def test_group_norms_do_not_take_weights_of_batch_norms(exported):
    """The norm statistics would be passed over, and the features be others."""
    config = exported('resnet50')[2]
    with pytest.raises(CompactSpecError, match=r"ResNet has no tensor 'layer.*running_mean'"):
        build_model({**config, 'norm_cfg': dict(type='GN', num_groups=1)})


def test_a_spec_of_another_network_stops(exported):
    config = exported('resnet50')[2]
    with pytest.raises(CompactSpecError, match=r"ResNet has no 'layer\d"):
        build_model({**config, 'backbone': {**config['backbone'], 'depth': 18}})


def test_the_scope_of_the_run_does_not_matter(exported):
    config = exported('resnet50')[2]
    with DefaultScope.overwrite_default_scope('mmdet'):
        network = build_model(config)
    assert type(network).__mro__[1].__module__.startswith('mmpretrain')
