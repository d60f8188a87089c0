"""How a classifier predicts is found out from its loss; heads that cannot be right are refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.registry import MODELS
from torch import nn

from mmstp.stp.heads import Prediction
from mmstp.stp.losses import label_kl, normalized_kl
from tests.stp.test_heads import LINEAR, ONE, stp


class OwnBCE(nn.Module):
    """A loss of sigmoids that no name gives away."""

    def forward(self, logits, labels, **_):
        return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 10).float())


@MODELS.register_module()
class MarginHead(LinearClsHead):
    """Takes other logits for its loss than it predicts by, and has a norm and a dropout."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm = nn.BatchNorm1d(self.in_channels)

    def forward(self, feats, labels=None):
        logits = self.fc(self.norm(feats[-1]))
        return logits if labels is None else logits - F.one_hot(labels, self.num_classes)

    def loss(self, feats, data_samples):
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return {'loss': self.loss_module(self(feats, labels), labels)}


@MODELS.register_module()
class UncalledHead(LinearClsHead):
    """Its loss does not go through its forward."""

    def loss(self, feats, data_samples):
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return {'loss': self.loss_module(self.fc(feats[-1]), labels)}


SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=10)
LOSSES = [
    (dict(type='CrossEntropyLoss'), False),
    (dict(type='CrossEntropyLoss', use_soft=True), False),
    (dict(type='CrossEntropyLoss', use_sigmoid=True), True),
    (dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1e-3), True),
    (SMOOTH, False),
    (dict(SMOOTH, use_sigmoid=True), True),
    (dict(SMOOTH, mode='multi_label', use_sigmoid=True), True),
    (dict(type='FocalLoss'), True),
    (dict(type='AsymmetricLoss'), True),
    (dict(type='AsymmetricLoss', use_sigmoid=False), False),
    (dict(type='SeesawLoss', num_classes=10), False),
]


@pytest.mark.parametrize(('loss', 'per_label'), LOSSES)
def test_a_loss_tells_how_its_head_predicts(loss, per_label):
    head = MODELS.build(dict(LINEAR, loss=loss))
    before = copy.deepcopy(head.loss_module.state_dict())
    assert Prediction(head, 10).per_label == per_label
    for key, value in head.loss_module.state_dict().items():
        assert torch.equal(value, before[key])  # it was not counted as a batch


def test_a_loss_that_a_hook_puts_in_counts_from_then_on():
    """As `SwitchRecipeHook` does."""
    algorithm = stp(LINEAR).eval()
    x = torch.randn(8, 3, 32, 32)
    for loss, distance in ((None, normalized_kl), (OwnBCE(), label_kl)):
        if loss is not None:
            algorithm.head.loss_module = loss
        visits = dict(algorithm.pool.visits)
        found = algorithm(x, ONE, mode='loss')['loss_target']
        (target,) = (a for a, n in algorithm.pool.visits.items() if n > visits[a])
        main = algorithm.model(x)
        with algorithm.supernet.activate(target):
            torch.testing.assert_close(found, distance(algorithm.model(x), main))


def test_a_head_with_a_margin_sees_each_batch_once():
    algorithm = stp(dict(LINEAR, type='MarginHead')).train()
    alone = copy.deepcopy(algorithm.model)
    x = torch.randn(8, 3, 32, 32)
    found = algorithm(x, ONE, mode='loss')
    assert found['loss_ce'] == alone(x, ONE, mode='loss')['loss']
    buffers = dict(algorithm.model.named_buffers())
    for name, buffer in alone.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize('kind', ['MarginHead', 'UncalledHead'])
def test_what_is_distilled_are_the_logits_that_a_head_predicts_by(kind):
    algorithm = stp(dict(LINEAR, type=kind)).eval()
    x = torch.randn(8, 3, 32, 32)
    found = algorithm(x, ONE, mode='loss')['loss_target']
    (target,) = (a for a, visits in algorithm.pool.visits.items() if visits)
    main = algorithm.model(x)
    with algorithm.supernet.activate(target):
        torch.testing.assert_close(found, normalized_kl(algorithm.model(x), main))


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        (dict(LINEAR, type='LinearRegressionHead'), r'LinearRegressionHead .* of regression'),
        (dict(LINEAR, num_classes=1), r'LinearClsHead gives one logit an image'),
        (dict(LINEAR, type='EfficientFormerClsHead'), r'EfficientFormerClsHead cannot be trained'),
        (dict(LINEAR, type='LeViTClsHead'), r'LeViTClsHead cannot be trained'),
    ],
)
def test_heads_that_cannot_be_right_are_refused_when_it_is_built(head, message):
    with pytest.raises(TypeError, match=message):
        stp(head)


def test_one_label_is_distilled_by_sigmoids():
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    assert stp(dict(LINEAR, num_classes=1, loss=loss)).task.prediction.per_label
