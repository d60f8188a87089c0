"""Detectors with the tools: training, resuming, evaluating, two processes, weights, the demo."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.datasets import ImageNet

from mmstp import Architecture
from mmstp.cli.data_checks import check_classes, check_library
from mmstp.deploy.export import write_export
from mmstp.deploy.onnx import session_of
from mmstp.errors import CheckpointError, LaunchError
from mmstp.registry import build_model
from tests import tiny

pytest.importorskip('mmdet')
from mmdet.registry import DATASETS

DETECTOR = tiny.ROOT / 'configs/mask_rcnn/mask-rcnn_r50-slim_fpn_digits.py'
SLIM = dict(type='mmpretrain.ResNet', depth=18, stem_channels=16, base_channels=16)
SUBNET = '((1, 2, 1, 2), (0.5, 1.0, 0.5, 0.7))'
OPTIONS = {
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'test_dataloader.num_workers': 0,
    'train_cfg.max_epochs': 2,
    'train_cfg.val_interval': 1,
    'param_scheduler.1.end': 2,
    'param_scheduler.1.T_max': 2,
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': 2,
    'randomness.seed': 0,
    'log_level': 'ERROR',
}


@pytest.fixture(scope='module')
def scenes(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    call('dataset_converters/digits_to_coco.py', '--out', folder, '--train', 8, '--val', 4)
    return folder


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """The export of a slim ResNet-18 with random weights."""
    folder = tmp_path_factory.mktemp('export')
    stp = tiny.stp_with_stem()
    architecture = Architecture.parse(SUBNET)
    write_export(folder, stp.export(architecture), tiny.config_with_stem(), stp, architecture)
    return folder


@pytest.fixture(scope='module')
def config(call, scenes, exported):
    """What ``tools/export.py --detector`` writes, for a few scenes and the least of everything."""
    call('export.py', exported / 'compact.py', exported / 'compact.pth', '--out', exported,
         '--detector', DETECTOR)  # fmt: skip
    return small(Config.fromfile(exported / f'compact_{DETECTOR.name}'), scenes, exported / 'a.py')


def small(cfg, scenes, path):
    """Makes a detector's config small, and writes it."""
    cfg.merge_from_dict(OPTIONS)
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[field].dataset.data_root = f'{scenes}/'
    annotations = f'{scenes}/annotations/instances_val2017.json'
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = annotations
    cfg.model.rpn_head.anchor_generator.scales = [8]
    cfg.dump(path)
    return path


@pytest.fixture(scope='module')
def trained(call, config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    call('train.py', config, '--work-dir', work_dir)
    return work_dir


def same_weights(first, second):
    weights = [torch.load(path, weights_only=False)['state_dict'] for path in (first, second)]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items()
    )


def test_training_moves_the_whole_detector(exported, trained):
    start = torch.load(exported / 'compact.pth', weights_only=True)['state_dict']
    weights = torch.load(trained / 'epoch_2.pth', weights_only=False)['state_dict']
    own = [key for key in weights if key.startswith('backbone.')]
    assert own == [key for key in start if key.startswith('backbone.')]
    assert all(weights[key].shape == start[key].shape for key in own)
    assert not torch.equal(weights['backbone.conv1.weight'], start['backbone.conv1.weight'])


def test_resumed_equals_uninterrupted(call, config, trained, tmp_path):
    (tmp_path / 'epoch_1.pth').write_bytes((trained / 'epoch_1.pth').read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    call('train.py', config, '--work-dir', tmp_path, '--resume')
    assert same_weights(tmp_path / 'epoch_2.pth', trained / 'epoch_2.pth')


def test_evaluated_with_pycocotools(call, config, trained, tmp_path):
    """The numbers of the last validation; predictions and pictures where they are asked for."""
    common = ('test.py', config, trained / 'epoch_2.pth', '--work-dir', tmp_path)
    call(*common, '--out', tmp_path / 'metrics.json', '--out-item', 'metrics')
    found = json.loads((tmp_path / 'metrics.json').read_text())
    scalars = next(trained.glob('*/vis_data/scalars.json')).read_text().splitlines()
    logged = [json.loads(line) for line in scalars if 'coco/bbox_mAP' in line][-1]
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= found.keys()
    for key, value in found.items():
        assert value == pytest.approx(logged[key]), key
    call(*common, '--out', tmp_path / 'predictions.pkl', '--show-dir', tmp_path / 'shown')
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert [p['img_id'] for p in predictions] == [1, 2, 3, 4]
    assert {'bboxes', 'scores', 'labels', 'masks'} <= predictions[0]['pred_instances'].keys()
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 4


def test_test_time_augmentation(call, exported, scenes, tmp_path):
    """mmdet merges boxes, so a detector of boxes."""
    cfg = Config.fromstring("_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'", '.py')
    digits = Config.fromfile(DETECTOR)
    digits.model.roi_head.pop('mask_head')
    digits.model.roi_head.pop('mask_roi_extractor')
    digits.model.type = 'FasterRCNN'
    digits.model.backbone = SLIM | dict(out_indices=(0, 1, 2, 3))
    digits.model.neck.in_channels = [16, 32, 64, 128]
    digits.test_evaluator.metric = digits.val_evaluator.metric = 'bbox'
    assert cfg.model.type == digits.model.type
    path = small(digits, scenes, tmp_path / 'boxes.py')
    call('train.py', path, '--work-dir', tmp_path, '--cfg-options', 'train_cfg.max_epochs=1')
    call('test.py', path, tmp_path / 'epoch_1.pth', '--work-dir', tmp_path, '--tta',
         '--out', tmp_path / 'metrics.json', '--out-item', 'metrics')  # fmt: skip
    assert 'coco/bbox_mAP' in json.loads((tmp_path / 'metrics.json').read_text())


@pytest.mark.slow
def test_two_processes(config, tmp_path):
    done = subprocess.run(
        ['bash', str(tiny.ROOT / 'tools/dist_train.sh'), str(config), '2', '--work-dir',
         str(tmp_path), '--cfg-options', 'train_cfg.max_epochs=1'],
        env={**os.environ, 'PYTHON': sys.executable, 'PORT': str(20000 + os.getpid() % 20000),
             'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(tiny.ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['meta']['iter'] == 2


# --- weights that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.backbone.init_cfg.prefix=bacbone.', r'bacbone\. is not in the pretrained model'),
        ('model.backbone.init_cfg.checkpoint={other}',
         r'the weights do not fit this ResNet:\n  conv1\.weight: \(16, 3, 7, 7\) in the check.*'
         r'This network is \(\(1, 2, 1, 2\), .*, the weights are \(\(2, 2, 2, 2\), \(1\.0, '),
        ('load_from={other}', r'the weights do not fit this ResNet \(backbone\)'),
    ],
    ids=['prefix', 'pretrained', 'load_from'],
)  # fmt: skip
def test_weights_that_do_not_fit_stop_the_run(call, config, option, message, tmp_path):
    """Before the first step; MMEngine alone would warn and go on from random weights."""
    torch.save({'state_dict': tiny.stp_with_stem().model.state_dict()}, tmp_path / 'other.pth')
    with pytest.raises((CheckpointError, AssertionError), match=f'(?s){message}'):
        call('train.py', config, '--work-dir', tmp_path, '--cfg-options',
             option.format(other=tmp_path / 'other.pth'))  # fmt: skip
    assert not list(tmp_path.glob('epoch_*.pth'))


def test_missing_data_are_reported(call, config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'train_dataloader\.dataset\.data_root'):
        call('train.py', config, '--work-dir', tmp_path, '--cfg-options',
             f'train_dataloader.dataset.data_root={tmp_path}/nowhere/')  # fmt: skip


def test_annotations_without_boxes(call, config, scenes, tmp_path):
    """mmdet leaves such images out, and NumPy has nothing to put together."""
    file = scenes / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text()) | {'annotations': []}
    (tmp_path / 'none.json').write_text(json.dumps(content))
    with pytest.raises(LaunchError, match=r'dataset has no image to train on: .*none\.json'):
        call('train.py', config, '--work-dir', tmp_path, '--cfg-options',
             f'train_dataloader.dataset.ann_file={tmp_path}/none.json')  # fmt: skip


def test_data_of_the_other_library(config):
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        boxes = DATASETS.build(cfg.val_dataloader.dataset)
    detector, classifier = build_model(cfg.model, 'mmdet'), tiny.stp().model
    labels = ImageNet(data_root='.', lazy_init=True)
    check_library({'val_dataloader.dataset': boxes}, detector, 'model')
    check_library({'val_dataloader.dataset': labels}, classifier, 'model.model')
    with pytest.raises(
        LaunchError, match=r'\(CocoDataset\) is of mmdet, and model\.model \(ImageCl'
    ):
        check_library({'val_dataloader.dataset': boxes}, classifier, 'model.model')
    with pytest.raises(LaunchError, match=r'\(ImageNet\) is of mmpretrain, and model \(MaskRCNN\)'):
        check_library({'val_dataloader.dataset': labels}, detector, 'model')


def test_classes_of_detectors(config):
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        boxes = DATASETS.build(cfg.val_dataloader.dataset)
        cfg.val_dataloader.dataset.pop('metainfo')
        of_coco = DATASETS.build({**cfg.val_dataloader.dataset, 'lazy_init': True})
    network = build_model(cfg.model, 'mmdet')
    check_classes({'train_dataloader.dataset': boxes}, network, 'model')
    message = (
        r'has 80 classes \(person, bicycle, car, …\), model\.roi_head\.bbox_head\.num_classes = 10'
    )
    with pytest.raises(LaunchError, match=rf'val_dataloader\.dataset {message}'):
        check_classes({'val_dataloader.dataset': of_coco}, network, 'model')


def test_batch_scaling_needs_a_batch(call, config, tmp_path):
    with pytest.raises(LaunchError, match=r'--auto-scale-lr needs auto_scale_lr\.base_batch_size'):
        call('train.py', config, '--work-dir', tmp_path, '--auto-scale-lr', '--cfg-options',
             'auto_scale_lr=dict()')  # fmt: skip


# --- a subnet of the main network, before one is exported ----------------------------------------


@pytest.fixture(scope='module')
def dynamic_config(scenes, tmp_path_factory):
    """Mask R-CNN around the main network of an STP run; its neck reads the dense channels."""
    folder = tmp_path_factory.mktemp('dynamic')
    weights = {f'model.{k}': v for k, v in tiny.stp_with_stem().model.state_dict().items()}
    torch.save({'state_dict': weights}, folder / 'stp.pth')
    cfg = Config.fromfile(DETECTOR)
    cfg.model.backbone = dict(
        type='mmstp.DynamicBackbone', backbone=SLIM, architecture=SUBNET, input_shape=(3, 64, 64),
        out_indices=(0, 1, 2, 3), norm_eval=True,
        init_cfg=dict(
            type='Pretrained', checkpoint=str(folder / 'stp.pth'), prefix='model.backbone.'
        ),
    )  # fmt: skip
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    cfg.custom_hooks.append(dict(type='mmstp.CalibrationHook', num_images=4))
    return small(cfg, scenes, folder / 'dynamic.py')


def test_a_subnet_in_a_detector(call, dynamic_config, scenes, tmp_path):
    """Trained, resumed and evaluated with norm statistics of its own, kept in checkpoints."""
    call('train.py', dynamic_config, '--work-dir', tmp_path / 'a')
    saved = torch.load(tmp_path / 'a/epoch_2.pth', weights_only=False)
    statistics = saved['mmstp_statistics']['backbone'][SUBNET]
    assert statistics['layer1.0.bn1.running_mean'].shape == (8,)
    assert saved['state_dict']['backbone.layer1.0.bn1.running_mean'].shape == (16,)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b/epoch_1.pth').write_bytes((tmp_path / 'a/epoch_1.pth').read_bytes())
    call('train.py', dynamic_config, '--work-dir', tmp_path / 'b', '--resume',
         tmp_path / 'b/epoch_1.pth')  # fmt: skip
    assert same_weights(tmp_path / 'a/epoch_2.pth', tmp_path / 'b/epoch_2.pth')
    resumed = torch.load(tmp_path / 'b/epoch_2.pth', weights_only=False)
    for key, tensor in statistics.items():
        assert torch.equal(tensor, resumed['mmstp_statistics']['backbone'][SUBNET][key]), key
    call('test.py', dynamic_config, tmp_path / 'a/epoch_2.pth', '--work-dir', tmp_path / 'test',
         '--out', tmp_path / 'metrics.json', '--out-item', 'metrics')  # fmt: skip
    assert 'coco/bbox_mAP' in json.loads((tmp_path / 'metrics.json').read_text())


def test_the_hook_of_norm_statistics_needs_a_dynamic_backbone(call, config, tmp_path):
    with pytest.raises(TypeError, match=r'CalibrationHook: MaskRCNN has no mmstp\.DynamicBackbone'):
        call('train.py', config, '--work-dir', tmp_path, '--cfg-options',
             'custom_hooks.0.type=mmstp.CalibrationHook')  # fmt: skip


# --- export.py ------------------------------------------------------------------------------------


def test_onnx_of_classifier_and_backbone(call, exported):
    pytest.importorskip('onnxscript')
    call('export.py', exported / 'compact.py', exported / 'compact.pth', '--out', exported,
         '--onnx')  # fmt: skip
    run = session_of(str(exported / 'backbone.onnx'))
    for number, side in ((1, 32), (3, 64)):  # any number of images, of any size
        maps = run(torch.zeros(number, 3, side, side))
        assert [x.shape[2] for x in maps] == [side // stride for stride in (4, 8, 16, 32)]
        assert {len(x) for x in maps} == {number}
    assert (exported / 'compact.onnx').stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--out', '{export}'), r'which is written already; add --detector or --onnx'),
        (('--out', '{other}', '--onnx'), r'its own folder is what --out has to name'),
        (('--out', '{export}', '--onnx', '--architecture', SUBNET), r'cannot be chosen anew'),
    ],
)
def test_an_export_is_not_exported_again(call, exported, args, message, tmp_path):
    args = [arg.format(export=exported, other=tmp_path) for arg in args]
    with pytest.raises(LaunchError, match=message):
        call('export.py', exported / 'compact.py', exported / 'compact.pth', *args)


def test_configs_that_inherit_an_export_say_when_it_is_missing(call, tmp_path):
    path = tiny.ROOT / 'configs/mask_rcnn/mask-rcnn_r50-stp-35pct_fpn_1x_coco.py'
    with pytest.raises(LaunchError, match=r'inherits .*r50_35pct/export/backbone\.py, which '):
        call('train.py', path, '--work-dir', tmp_path)


# --- the demo -------------------------------------------------------------------------------------


def test_demo_goes_the_whole_way(call, tmp_path, capsys):
    call('demo_detection.py', '--tiny', '--work-dir', tmp_path)
    summary = json.loads((tmp_path / 'summary.json').read_text())
    dense, compact, whole = (summary[name] for name in ('dense', 'compact', 'whole'))
    assert compact['backbone_macs'] / dense['backbone_macs'] == pytest.approx(0.35, rel=0.03)
    assert whole['macs'] / dense['macs'] == pytest.approx(0.5, rel=0.02)
    for found in (dense, compact, whole):
        assert {'bbox', 'segm'} <= found.keys()
        assert found['latency_ratios'].keys() == {'backbone', 'whole'}
        assert min(found['latency_ratios'].values()) > 0
    assert 'compact detector' in capsys.readouterr().out
    assert (tmp_path / 'detections.png').stat().st_size > 10_000
