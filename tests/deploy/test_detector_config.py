"""Configs of detectors around an export: what is filled in, and why some cannot be."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from mmstp.deploy.detector_check import running
from mmstp.deploy.detector_config import write_detector
from mmstp.deploy.export import BACKBONE, DESCRIPTION, WEIGHTS, load_backbone, reload, write_export
from mmstp.deploy.plan_file import PLAN
from mmstp.errors import CheckpointError, DetectorError
from mmstp.registry import build_model
from tests import tiny

pytest.importorskip('mmdet')


@pytest.fixture(scope='module')
def stp():
    return tiny.stp_with_stem()


@pytest.fixture(scope='module')
def exported(stp, tmp_path_factory):
    """A slim ResNet-18 with ResNet's own stem, half of it."""
    folder = tmp_path_factory.mktemp('export')
    architecture = stp.pool.best
    write_export(folder, stp.export(architecture), tiny.config_with_stem(), stp, architecture)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy, so that what a test writes there is its own."""
    for name in (BACKBONE, WEIGHTS, DESCRIPTION, PLAN, 'compact.py'):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    return tmp_path


@pytest.fixture
def logged(monkeypatch):
    """What is logged, as one text."""
    messages = []
    monkeypatch.setattr(
        MMLogger, 'callHandlers', lambda self, record: messages.append(record.getMessage())
    )
    return messages


def channels(folder):
    return list(Config.fromfile(folder / BACKBONE).compact_channels)


# --- backbone.py ----------------------------------------------------------------------------------


def test_backbone_py_describes_what_a_detector_needs(stp, folder):
    config = Config.fromfile(folder / BACKBONE)
    assert config.compact_strides == [4, 8, 16, 32]
    assert config.compact_backbone.backbone.type == 'mmpretrain.ResNet'
    assert config.compact_backbone.init_cfg.checkpoint == str(folder / WEIGHTS)  # where it lies
    assert config.compact_preprocessor == dict(mean=[77.8] * 3, std=[81.2] * 3, bgr_to_rgb=False)
    export = stp.export(stp.pool.best).backbone
    blocks = [getattr(export, f'layer{i}')[0] for i in (1, 2, 3, 4)]
    assert channels(folder) == [block.conv2.out_channels for block in blocks]


def test_features_are_the_classifier_s_and_the_subnet_s(stp, folder):
    """To the bit, in three places: the detector's backbone, the classifier, the supernet."""
    path = write_detector(folder, 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    detector = build_model(Config.fromfile(path).model, 'mmdet')
    detector.backbone.init_weights()
    classifier = reload(folder)
    detector.train()  # its norms stay in eval mode
    classifier.eval()
    stp.eval()
    for shape in ((2, 3, 64, 64), (1, 3, 96, 160)):
        images = torch.randn(shape)
        with torch.no_grad():
            features = detector.backbone(images)
            assert torch.equal(features[3], classifier.backbone(images)[0])
            with stp.supernet.activate(stp.pool.best):
                assert torch.equal(features[3], stp.model.backbone(images)[0])


# --- what is filled in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'neck'),
    [
        ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco', lambda c: c),
        ('retinanet/retinanet_r50_fpn_1x_coco', lambda c: c),
        ('yolo/yolov3_d53_8xb8-320-273e_coco', lambda c: c[:0:-1]),  # from coarse to fine
        ('yolof/yolof_r50-c5_8xb8-1x_coco', lambda c: c[3]),  # one number
        ('detr/detr_r50_8xb2-150e_coco', lambda c: c[3:]),
        ('yolox/yolox_s_8xb8-300e_coco', lambda c: c[1:]),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_neck_s_channels_are_filled_in(name, neck, folder):
    path = write_detector(folder, f'mmdet::{name}.py')
    assert path.name == f'compact_{Path(name).name}.py'
    config = Config.fromfile(path)
    assert config.model.neck.in_channels == neck(channels(folder))
    assert config.model.backbone.type == 'mmstp.CompactBackbone'
    dense = Config.fromstring(f"_base_ = 'mmdet::{name}.py'", '.py')
    assert config.optim_wrapper == dense.optim_wrapper
    assert config.train_dataloader == dense.train_dataloader


def test_a_list_of_necks(folder):
    path = write_detector(folder, 'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py')
    first, second = Config.fromfile(path).model.neck
    assert first.type == 'FPN'
    assert first.in_channels == channels(folder)
    assert second.type == 'DyHead'


def test_without_a_neck_the_head_s_channels_are_filled_in(folder):
    path = write_detector(folder, 'mmdet::rpn/rpn_r50-caffe-c4_1x_coco.py')
    config = Config.fromfile(path)
    assert config.model.rpn_head.in_channels == channels(folder)[2]
    assert config.model.backbone.out_indices == (2,)


def test_options_of_training_are_carried_over_and_others_are_named(folder, logged):
    path = write_detector(folder, 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    assert any('are left out: depth, num_stages, style' in message for message in logged)
    backbone = Config.fromfile(path).model.backbone
    assert backbone.frozen_stages == 1
    assert backbone.norm_eval is True
    assert backbone.norm_cfg == dict(type='BN', requires_grad=False)
    # the classifier's, not those of the caffe weights
    preprocessor = Config.fromfile(path).model.data_preprocessor
    assert preprocessor.mean == [77.8] * 3
    assert preprocessor.pad_size_divisor == 32


def test_numbers_of_norms_are_the_compact_network_s(folder):
    """YOLOX's eps of 1e-3 would change its features; options of another class do not fit it."""
    path = write_detector(folder, 'mmdet::yolox/yolox_s_8xb8-300e_coco.py')
    backbone = Config.fromfile(path).model.backbone
    assert backbone.norm_cfg == dict(type='BN', requires_grad=True)
    assert 'frozen_stages' not in backbone


def test_nested_detectors(folder):
    name = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    config = Config.fromfile(write_detector(folder, name))
    assert config.model.detector.neck.in_channels == channels(folder)
    assert config.model.detector.backbone.type == 'mmstp.CompactBackbone'
    assert config.model.data_preprocessor.data_preprocessor.mean == [77.8] * 3


def test_configs_in_files_are_inherited_by_a_relative_path(folder):
    name = tiny.ROOT / 'configs/mask_rcnn/mask-rcnn_r50-slim_fpn_digits.py'
    path = write_detector(folder, str(name))
    assert "_base_ = ['../" in path.read_text()
    config = Config.fromfile(path)
    assert config.model.neck == dict(
        type='FPN', in_channels=channels(folder), out_channels=64, num_outs=4
    )


def test_pure_python_configs_are_dumped_beside_and_inherited(folder, tmp_path_factory):
    """No other config can inherit them as they are."""
    path = tmp_path_factory.mktemp('pure') / 'mine.py'
    model = Config.fromfile(
        tiny.ROOT / 'configs/mask_rcnn/mask-rcnn_r50-slim_fpn_digits.py'
    ).model.to_dict()
    del model['type'], model['backbone']['type']
    path.write_text(
        'from mmdet.models.detectors import MaskRCNN\nfrom mmpretrain.models import ResNet\n'
        f"default_scope = 'mmdet'\nmodel = dict(type=MaskRCNN, **{model!r})\n"
        "model['backbone']['type'] = ResNet\n"
    )
    written = write_detector(folder, str(path))
    assert written.name == 'compact_mine.py'
    config = Config.fromfile(written)
    assert config.model.type.endswith('MaskRCNN')
    assert config.model.neck.in_channels == channels(folder)
    assert build_model(config.model, 'mmdet').backbone is not None


def test_the_folder_can_be_moved(folder, tmp_path_factory):
    path = write_detector(folder, 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    moved = folder.rename(tmp_path_factory.mktemp('other') / 'place')
    detector = build_model(Config.fromfile(moved / path.name).model, 'mmdet')
    detector.backbone.init_weights()
    expected = load_backbone(moved).state_dict()
    found = detector.backbone.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# --- where it cannot be replaced ------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        pytest.param(
            'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco',
            r'roi_head\.shared_head\.layer4\.0\.conv1: .*to have 1024 channels',
            marks=pytest.mark.slow,
        ),
        ('ssd/ssd300_coco', r'AssertionError.*ssd_neck\.py:\d+: assert in_channels == '),
        ('detectors/htc_r50-rfp_1x_coco', r'strides \(1, 4, 8, 16, 32\), the compact one at '),
        ('deepsort/deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test',
         r'has 2 backbones \(model\.detector\.backbone, model\.reid\.backbone\)'),
        ('common/ms_3x_coco', r'has 0 backbones: one is what can be replaced'),
        ('none/none', r"--detector 'mmdet::none/none\.py' cannot be read"),
    ],
    ids=lambda value: value.partition('/')[0],
)  # fmt: skip
def test_the_error_says_why(name, message, folder):
    before = sorted(folder.iterdir())
    with pytest.raises(DetectorError, match=message):
        write_detector(folder, f'mmdet::{name}.py')
    assert sorted(folder.iterdir()) == before


def test_necks_that_read_other_channels_are_refused(folder, tmp_path):
    (tmp_path / 'own.py').write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
        'model = dict(neck=dict(in_channels=[256, 512, 1000, 2048]))\n'
    )
    with pytest.raises(DetectorError, match=r'neck\.in_channels = \[256, 512, 1000, 2048\] \('):
        write_detector(folder, str(tmp_path / 'own.py'))


def test_a_folder_without_an_export(tmp_path):
    with pytest.raises(DetectorError, match=r'holds no export: .*architecture\.json is missing'):
        write_detector(tmp_path, 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('backbone', 'none: VGG returns (1, 10)', r'no backbone for a detector \(none: VGG '),
        ('one_size', 'the dense network takes no other size', r'many sizes: the dense network '),
    ],
)  # fmt: skip
def test_networks_that_are_no_backbones_are_refused(field, value, message, folder):
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**description, field: value}))
    with pytest.raises(DetectorError, match=message):
        write_detector(folder, 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')


def test_weights_of_another_export_stop_it(stp, folder):
    other = next(a for a in stp.pool.scores if a != stp.pool.best)
    torch.save({'state_dict': stp.export(other).state_dict()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r'This network is \(\(.*, the weights are \(\('):
        write_detector(folder, 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')


def test_detectors_that_do_not_run_here_at_all_are_written_with_a_warning(folder, logged):
    """CARAFE has no operator for CPUs, which is not the backbone's fault."""
    path = write_detector(folder, 'mmdet::carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py')
    assert path.is_file()
    assert any('was not tried: the dense detector does not run' in message for message in logged)


def test_what_runs_is_known_by_its_path():
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3)))
    with running(model) as inside:
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 2))
        assert inside == ['1', '1.1']
    model[0](torch.zeros(1))
    assert inside == ['1', '1.1']  # no hook is left
