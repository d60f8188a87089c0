"""WideResNet against the original: parameters, shapes, the order of operations, initialisation."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import nn

from mmstp.backbones.wide_resnet import WideResNet


def small(**kwargs) -> WideResNet:
    torch.manual_seed(0)
    model = WideResNet(**{'depth': 16, 'widen_factor': 2, **kwargs})
    model.init_weights()
    return model


def test_wrn_28_10_has_the_parameters_of_the_paper():
    """36.5 M in Table 4 of Zagoruyko and Komodakis; counted exactly in its released code."""
    with torch.device('meta'):
        model = nn.Sequential(WideResNet(depth=28, widen_factor=10), nn.Linear(640, 100))
    assert sum(p.numel() for p in model.parameters()) == 36_536_884


@pytest.mark.parametrize(('depth', 'blocks'), [(10, 1), (28, 4), (40, 6)])
def test_depth_is_the_number_of_convolutions(depth, blocks):
    with torch.device('meta'):
        model = WideResNet(depth=depth, widen_factor=2)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == depth
    assert [len(model.layer1), len(model.layer2), len(model.layer3)] == [blocks] * 3


def test_output_is_a_tuple_of_one_feature_map():
    model = small(in_channels=1)
    outs = model(torch.zeros(2, 1, 32, 20))
    assert isinstance(outs, tuple)
    assert [tuple(out.shape) for out in outs] == [(2, model.out_channels, 8, 5)]
    assert outs[0].min() >= 0  # the last ReLU belongs to the backbone


def reference_forward(state: dict[str, torch.Tensor], x: torch.Tensor, blocks: int) -> torch.Tensor:
    """The forward pass of the original, in functional form, with batch statistics."""

    def norm_relu(x, key):
        weight, bias = state[f'{key}.weight'], state[f'{key}.bias']
        return F.relu(F.batch_norm(x, None, None, weight, bias, training=True))

    x = F.conv2d(x, state['conv1.weight'], padding=1)
    for stage in (1, 2, 3):
        for block in range(blocks):
            key = f'layer{stage}.{block}'
            stride = 2 if stage > 1 and block == 0 else 1
            o1 = norm_relu(x, f'{key}.norm1')
            y = F.conv2d(o1, state[f'{key}.conv1.weight'], stride=stride, padding=1)
            o2 = norm_relu(y, f'{key}.norm2')
            z = F.conv2d(o2, state[f'{key}.conv2.weight'], padding=1)
            if block == 0:
                z = z + F.conv2d(o1, state[f'{key}.shortcut.weight'], stride=stride)
            else:
                z = z + x
            x = z
    return norm_relu(x, 'norm1')


def test_equals_the_functional_form_of_the_original():
    model = small().double()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norm layers other than one and zero, so that they matter
            nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(x)[0], reference_forward(dict(model.named_parameters()), x, 2))


def test_shortcut_only_where_the_shape_changes():
    model = small(depth=16, widen_factor=1)
    shortcuts = [name for name, _ in model.named_modules() if name.endswith('shortcut')]
    assert shortcuts == ['layer2.0.shortcut', 'layer3.0.shortcut']  # 16 to 16 channels in layer1


def test_initialisation_is_he_by_fan_out():
    for name, module in small(widen_factor=4).named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            expected = math.sqrt(2 / fan_out)
            assert module.weight.std().item() == pytest.approx(expected, rel=0.2), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name


def test_dropout_acts_in_training_only():
    model, x = small(dropout=0.5), torch.randn(2, 3, 8, 8)
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_norm_cfg_replaces_every_norm_layer():
    model = small(norm_cfg=dict(type='GN', num_groups=4))
    kinds = {type(m) for n, m in model.named_modules() if n.rpartition('.')[2].startswith('norm')}
    assert kinds == {nn.GroupNorm}


def test_outputs_of_the_stages():
    model, x = small(out_indices=(0, 1, 2)), torch.randn(1, 3, 32, 20)
    model.eval()
    outs = model(x)
    assert [tuple(out.shape[1:]) for out in outs] == [(32, 32, 20), (64, 16, 10), (128, 8, 5)]
    one = small(out_indices=(1,))
    one.load_state_dict(model.state_dict())
    one.eval()
    assert torch.equal(one(x)[0], outs[1])
    # the next stage takes it before it normalises
    assert torch.equal(
        model.layer3(outs[1]), model.layer3(model.layer2(model.layer1(model.conv1(x))))
    )


@pytest.mark.parametrize(
    ('stages', 'frozen'),
    [(-1, set()), (0, {'conv1'}), (2, {'conv1', 'layer1', 'layer2'})],
)
def test_frozen_stages(stages, frozen):
    model = small(frozen_stages=stages)
    model.train()
    found = {k.partition('.')[0] for k, p in model.named_parameters() if not p.requires_grad}
    assert found == frozen
    norms = {n.partition('.')[0] for n, m in model.named_modules()
             if isinstance(m, nn.BatchNorm2d) and not m.training}  # fmt: skip
    assert norms == frozen - {'conv1'}
    model.eval()
    assert not any(module.training for module in model.modules())


def test_norms_in_eval_mode():
    model = small(norm_eval=True)
    model.train()
    assert model.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_recomputed_blocks_have_the_same_gradients():
    x, found = torch.randn(2, 3, 16, 16), []
    for with_cp in (False, True):
        model = small(with_cp=with_cp)
        model.train()
        model(x)[0].square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ('kwargs', 'words'),
    [
        ({'depth': 27}, ['depth', '6n + 4', '27']),
        ({'depth': 4}, ['depth', '6n + 4', '4']),
        ({'widen_factor': 0}, ['widen_factor', '1', '0']),
        ({'dropout': 1.0}, ['dropout', '[0, 1)', '1.0']),
        ({'out_indices': (3,)}, ['out_indices', '0, 1 and 2', '(3,)']),
        ({'out_indices': ()}, ['out_indices', '0, 1 and 2', '()']),
        ({'frozen_stages': 4}, ['frozen_stages', '[-1, 3]', '4']),
    ],
)
def test_errors_name_argument_value_and_what_is_accepted(kwargs, words):
    with pytest.raises(ValueError) as error:
        WideResNet(**kwargs)
    assert all(word in str(error.value) for word in words)


def test_classifier_of_mmpretrain_takes_it():
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type='mmstp.WideResNet', depth=10, widen_factor=1),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=7, in_channels=64),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MMPRETRAIN_MODELS.build(cfg)
    assert model(torch.zeros(2, 3, 8, 8), mode='tensor').shape == (2, 7)
