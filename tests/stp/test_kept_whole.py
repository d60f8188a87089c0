"""What must not change under a run: frozen norms, the classifier's parts, checkpoints."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import DataLoader

from mmstp.errors import CheckpointError
from mmstp.foreign import BatchNorm
from mmstp.stp.hooks.statistics import calibrate_on
from mmstp.stp.options import not_finite
from tests import tiny
from tests.networks import randomize
from tests.stp.test_heads import BACKBONE, LINEAR, ONE, stp


def images(count):
    def collate(batch):
        inputs, samples = zip(*batch, strict=True)
        return dict(inputs=list(inputs), data_samples=list(samples))

    data = [(torch.randn(3, 32, 32), DataSample().set_gt_label(0)) for _ in range(count)]
    return torch.stack([x for x, _ in data]), DataLoader(data, count, collate_fn=collate)


# --- norms in eval mode ---------------------------------------------------------------------------

WHOLE = dict(stages={'backbone.layer1': dict(widths=(1.0,), depths=(2,))})


@pytest.mark.parametrize('frozen', [-1, 1])
def test_what_is_evaluated_is_what_was_trained(frozen):
    """Frozen norms that are whole keep the main network's statistics, which subnets train on."""
    backbone = dict(BACKBONE, frozen_stages=frozen)
    algorithm = stp(LINEAR, backbone, space=WHOLE, target=0.5)
    randomize(algorithm.model)
    algorithm.train()
    x, loader = images(64)
    with torch.no_grad(), algorithm.supernet.activate(algorithm.pool.best):
        trained = algorithm.model(x)
    network = algorithm.export()
    calibrate_on(network, loader, 64)
    for module in network.modules():
        module.training = False
    with torch.no_grad():
        evaluated = network(x)
    assert (trained - evaluated).abs().max() < 1e-2 * trained.abs().max()
    assert all(
        norm.track_running_stats for norm in network.modules() if isinstance(norm, BatchNorm)
    )


def test_norms_that_a_hook_puts_into_eval_mode_are_seen():
    algorithm = stp(LINEAR).train()
    for module in algorithm.modules():
        if isinstance(module, BatchNorm):
            module.eval()
    x = torch.randn(8, 3, 32, 32)
    with pytest.raises(ValueError, match='eval mode in training'):
        algorithm(x, ONE, mode='loss')
    algorithm.eval()
    assert algorithm(x, ONE, mode='loss')['loss_ce'].isfinite()  # losses of a validation


# --- what belongs to the classifier ---------------------------------------------------------------


@MODELS.register_module()
class ClassifierWithLoss(ImageClassifier):
    """Has its loss module itself, as `TimmClassifier` has."""

    def __init__(self, **options):
        super().__init__(**options)
        self.loss_module = nn.Identity()


def test_what_belongs_to_the_classifier_is_set_there():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        algorithm = tiny.stp(model__model__type='ClassifierWithLoss')
    keys, new = list(algorithm.state_dict()), nn.Softplus()
    algorithm.loss_module = new
    assert algorithm.model.loss_module is algorithm.loss_module is new
    algorithm.beta1, algorithm.note = 3.0, 'mine'
    assert not hasattr(algorithm.model, 'beta1') and not hasattr(algorithm.model, 'note')
    assert list(algorithm.state_dict()) == keys
    assert copy.deepcopy(algorithm).head is not algorithm.head


# --- checkpoints ----------------------------------------------------------------------------------


class Spoil(Hook):
    """Has a step put a NaN into the weights."""

    def __init__(self, step):
        self.step = step

    def before_train(self, runner):
        own = runner.model.train_step

        def train_step(*args, **kwargs):
            found = own(*args, **kwargs)
            if runner.iter + 1 == self.step:
                runner.model.model.head.fc.bias.data[0] = float('nan')
            return found

        runner.model.train_step = train_step


@pytest.mark.parametrize('by_epoch', [True, False])
def test_the_last_good_checkpoint_outlives_weights_that_are_not_finite(by_epoch, tmp_path):
    """Even where only one is kept, and the hook takes the old one away before it saves."""
    cfg = tiny.config(tmp_path)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4, max_keep_ckpts=1
    )
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Spoil(8))
    with pytest.raises(CheckpointError, match=r'head\.fc\.bias holds numbers .* not finite'):
        runner.train()
    last = (tmp_path / 'last_checkpoint').read_text()
    weights = torch.load(last, weights_only=False)['state_dict']
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_masks_may_be_infinite():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network.register_buffer('mask', torch.full((2, 2), float('-inf')))
    assert not_finite(network) == []
    network[1].running_var[0] = float('inf')
    network[0].weight.data[1, 1] = float('nan')
    assert not_finite(network) == ['0.weight', '1.running_var']


def test_broken_images_are_named():
    algorithm = tiny.stp().train()
    x, samples = tiny.batch()
    x[3, 0, 2, 2] = float('nan')
    with pytest.raises(ValueError, match=r'is nan: images \[3\] of this batch hold numbers'):
        algorithm(x, samples, mode='loss')


def test_weights_to_start_from_have_to_be_finite(tmp_path):
    weights = tiny.stp().model.state_dict()
    weights['head.fc.bias'][2] = float('inf')
    torch.save(weights, tmp_path / 'dense.pth')
    with pytest.raises(CheckpointError, match=r'dense\.pth.*head\.fc\.bias holds numbers'):
        tiny.stp(model__pretrained=str(tmp_path / 'dense.pth'))


@pytest.mark.parametrize(
    'field', [dict(activation_checkpointing=['model.backbone.layer1']),
              dict(efficient_conv_bn_eval=['model.backbone']), dict(compile=dict(backend='eager'))]
)  # fmt: skip
def test_fields_that_change_how_a_model_runs_are_refused(field, tmp_path):
    cfg = tiny.config(tmp_path)
    cfg.update(field)
    (name,) = field
    with pytest.raises(RuntimeError, match=f'^{name}='):
        Runner.from_cfg(cfg).train()


def test_a_model_can_be_trained_again(tmp_path):
    """By another runner, with a hook of its own."""
    first = Runner.from_cfg(tiny.config(tmp_path / 'a', train_cfg__max_epochs=1))
    first.train()
    second = Runner.from_cfg(tiny.config(tmp_path / 'b', train_cfg__max_epochs=1))
    second.model = first.model
    second.train()
