"""The classifier's own loss, distillation as its head predicts, and what STP cannot train."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from torch import nn

from mmstp import STP
from mmstp.errors import FieldError
from mmstp.stp.losses import label_kl, normalized_kl
from mmstp.stp.norm_modes import norms_behind_choices
from tests import tiny
from tests.networks import assert_within

BACKBONE = dict(type='ResNet_CIFAR', depth=18, stem_channels=16, base_channels=16)
LINEAR = dict(type='LinearClsHead', num_classes=10, in_channels=128)
LABELS = dict(type='MultiLabelLinearClsHead', num_classes=10, in_channels=128)
ONE = [DataSample().set_gt_label(i) for i in range(8)]
SEVERAL = [DataSample().set_gt_label([i, i + 1]) for i in range(8)]
SCORES = [DataSample().set_gt_score(torch.eye(10)[i]) for i in range(8)]
SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.1)
STACKED = dict(mid_channels=[64], act_cfg=dict(type='ReLU'), norm_cfg=dict(type='BN1d'))
HEADS = {
    'linear': (LINEAR, ONE),
    'smooth': (dict(LINEAR, loss=SMOOTH), ONE),
    'sigmoid': (dict(LINEAR, loss=dict(type='CrossEntropyLoss', use_sigmoid=True)), SCORES),
    'stacked': (dict(LINEAR, type='StackedLinearClsHead', **STACKED), ONE),
    'arcface': (dict(LINEAR, type='ArcFaceClsHead', loss=dict(type='CrossEntropyLoss')), ONE),
    'labels': (LABELS, SEVERAL),
    'focal': (dict(LABELS, loss=dict(type='FocalLoss')), SEVERAL),
    'asymmetric': (dict(LABELS, loss=dict(type='AsymmetricLoss')), SEVERAL),
    'csra': (
        dict(type='CSRAClsHead', num_classes=10, in_channels=128, num_heads=1, lam=0.1),
        SEVERAL,
    ),
}
PER_LABEL = {'sigmoid', 'labels', 'focal', 'asymmetric', 'csra'}


def stp(head, backbone=BACKBONE, **options):
    pooled = head['type'] != 'CSRAClsHead'
    model = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling') if pooled else None,
        head=head,
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        return STP(
            model,
            **{'target': 0.4, 'tolerance': 0.1, 'input_shape': (3, 32, 32), **options},
            pool=dict(size=5, seed=0),
            data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=10),
        )


@pytest.mark.parametrize('name', HEADS)
def test_the_main_network_s_loss_is_the_classifier_s_own(name):
    head, samples = HEADS[name]
    algorithm = stp(head, target_ce=2.0).train()
    x = torch.randn(8, 3, 32, 32)
    own = algorithm.model(x, samples, mode='loss')['loss']
    found = algorithm(x, samples, mode='loss')
    assert_within(found['loss_ce'], own, 1e-4)
    (target,) = (a for a, visits in algorithm.pool.visits.items() if visits)
    with algorithm.supernet.activate(target):
        own = algorithm.model(x, samples, mode='loss')['loss']
        logits = algorithm.model(x)
    assert_within(found['loss_target_ce'], 2 * own, 1e-4)
    main = algorithm.model(x)
    distance = label_kl(logits, main) if name in PER_LABEL else normalized_kl(logits, main)
    assert_within(found['loss_target'], distance, 1e-3, main.abs().max().item())


def test_a_pass_of_a_head_is_one():
    """Norms inside it see each batch once."""
    algorithm = stp(HEADS['stacked'][0]).train()
    algorithm(torch.randn(8, 3, 32, 32), ONE, mode='loss')
    counts = {k: int(b) for k, b in algorithm.model.head.named_buffers() if 'num_batches' in k}
    assert set(counts.values()) == {1}


def test_label_kl_is_that_of_the_labels_distributions():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 10).double(), torch.randn(4, 10).double()
    expected = 0.0
    for s, t in zip(student.flatten(), teacher.flatten(), strict=True):
        yes, no = (torch.distributions.Bernoulli(logits=x) for x in (t, s))
        expected += torch.distributions.kl_divergence(yes, no) / 4
    torch.testing.assert_close(label_kl(student, teacher).double(), expected)
    assert label_kl(teacher, teacher) == 0
    assert label_kl(teacher + 5, teacher) > 1  # the level of all logits decides which are labels
    assert torch.isfinite(label_kl(student * 1e4, teacher * 1e4))


def test_distillation_pulls_towards_the_teacher_s_labels():
    student, teacher = torch.zeros(1, 6, requires_grad=True), torch.tensor([[3.0, -3, 1, -1, 5, 0]])
    label_kl(student, teacher).backward()
    torch.testing.assert_close(student.grad, torch.full((1, 6), 0.5) - teacher.sigmoid())
    assert F.logsigmoid(teacher).isfinite().all()


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        (
            dict(type='MultiTaskHead', task_heads={'a': dict(LINEAR), 'b': dict(LINEAR)}),
            'MultiTaskHead, the head of the classifier, gives a dict, not logits',
        ),
    ],
)
def test_heads_that_give_no_logits_are_refused_when_it_is_built(head, message):
    with pytest.raises(TypeError, match=message):
        stp(head)


def test_a_classifier_without_a_head_is_refused():
    class Headless(nn.Sequential):
        data_preprocessor = None

    with pytest.raises(TypeError, match='Headless has no head whose loss STP could take'):
        STP(Headless(nn.Conv2d(3, 8, 1)), target=0.5)


# --- norms in eval mode ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(norm_eval=True), r'backbone\.bn1 and 19 more norms .*\(norm_eval=True\)'),
        (dict(frozen_stages=0), r'backbone\.bn1 stays .*\(frozen_stages=0\)'),
        (dict(frozen_stages=1), r'backbone\.bn1 and 4 more norms .*\(frozen_stages=1\)'),
        (dict(frozen_stages=2, norm_eval=True), r'\(norm_eval=True, frozen_stages=2\)'),
    ],
)
def test_norms_that_would_take_the_main_network_s_statistics_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        stp(LINEAR, dict(BACKBONE, **options))


def test_frozen_stages_that_are_whole_in_every_subnet_are_all_right():
    """Their norms see the same in the main network and in each subnet."""
    whole = {'backbone.layer1': dict(widths=(1.0,), depths=(2,))}
    algorithm = stp(LINEAR, dict(BACKBONE, frozen_stages=1), space=dict(stages=whole), target=0.5)
    algorithm.train()
    frozen = [m for _, m in algorithm.model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(not norm.training for norm in frozen) == 5
    behind = {path for path, _ in norms_behind_choices(algorithm.supernet)}
    assert not any(path.startswith(('backbone.bn1', 'backbone.layer1')) for path in behind)
    assert any(path.startswith('backbone.layer2') for path in behind)


def test_norms_put_into_eval_mode_later_are_refused():
    algorithm = stp(LINEAR)
    algorithm.model.backbone.norm_eval = True
    algorithm.eval()
    with pytest.raises(ValueError, match='stay in eval mode in training'):
        algorithm.train()


# --- what hooks and constructors of mmpretrain look for -------------------------------------------


def test_what_belongs_to_the_classifier_is_found():
    algorithm = stp(HEADS['arcface'][0])
    assert algorithm.head is algorithm.model.head
    assert algorithm.backbone is algorithm.model.backbone
    assert not hasattr(algorithm, 'nonsense')
    with pytest.raises(AttributeError, match="'STP' object has no attribute 'nonsense'"):
        algorithm.nonsense  # noqa: B018


def test_depths_of_layers_are_those_of_the_classifier():
    algorithm = tiny.stp()
    algorithm.model.get_layer_depth = lambda name: (len(name), 100)
    assert algorithm.get_layer_depth('model.backbone.x') == (len('backbone.x'), 100)


# --- options --------------------------------------------------------------------------------------

BAD = [
    (dict(model__pool__size=True), ValueError, r'pool\.size=True'),
    (dict(model__pool__alpha='0.3'), ValueError, r"pool\.alpha='0\.3'"),
    (dict(model__pool__seed=-1), ValueError, r'pool\.seed=-1'),
    (dict(model__pool=5), FieldError, r'model\.pool=5: expected a dict'),
    (dict(model__space='x'), FieldError, r"model\.space='x': expected a dict"),
    (dict(model__beta1=float('nan')), ValueError, r'model\.beta1=nan'),
    (dict(model__target=float('inf')), ValueError, r'target=inf'),
    (dict(model__input_shape=32), FieldError, r'model\.input_shape=32: expected \(channels'),
    (dict(model__input_shape=('3', 1, 1)), FieldError, r'model\.input_shape='),
]


@pytest.mark.parametrize(('options', 'error', 'message'), BAD)
def test_options_of_another_kind_are_named(options, error, message):
    with pytest.raises(error, match=message):
        tiny.stp(**options)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(model='resnet50', target=0.3), r"model\.model='resnet50': expected the config"),
        (dict(model=dict(type='ImageClassifier')), r'model\.target is missing'),
    ],
)
def test_what_is_missing_is_named(arguments, message):
    with pytest.raises(FieldError, match=message):
        STP(**arguments)


@pytest.mark.parametrize(
    ('where', 'value'), [*itertools.product(['image', 'weight'], [float('nan'), float('inf')])]
)
def test_numbers_that_are_not_finite_stop_before_the_weights_change(where, value):
    algorithm = tiny.stp().train()
    images, samples = tiny.batch()
    if where == 'image':
        images[3, 0, 2, 2] = value
    else:
        algorithm.model.head.fc.bias.data[1] = value
    with pytest.raises(ValueError, match=r'is (nan|inf): (training diverged|images \[3\])'):
        algorithm(images, samples, mode='loss')
    assert not any(algorithm.pool.visits.values())
