"""Configs of detectors: Table 6 of the paper, and what inherits an export."""

import re
import shutil

import pytest
import torch
from mmengine.config import Config

from mmstp import Architecture
from mmstp.cli.launch import build_stp, load_config
from mmstp.deploy.export import BACKBONE, WEIGHTS, write_export
from mmstp.registry import build_model
from tests import tiny

pytest.importorskip('mmdet')
ROOT = tiny.ROOT / 'configs'
INHERITING = sorted(path for path in ROOT.rglob('*_r50-stp-*.py'))
TABLE_6 = ROOT / 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'


def target_of(path):
    return int(re.search(r'-stp-(\d+)pct_', path.name)[1])


@pytest.fixture(scope='module')
def copied(tmp_path_factory):
    """The configs beside the work dirs of runs, with an export of a ResNet-50 for each target."""
    root = tmp_path_factory.mktemp('checkout')
    shutil.copytree(ROOT, root / 'configs')
    config = load_config(str(ROOT / 'stp/r50_35pct.py'), {'model.pool.size': 3})
    stp = build_stp(config)
    architecture = Architecture.parse('((2, 1, 2, 2), (1.0, 0.5, 0.3, 0.7))')
    first = root / 'work_dirs/r50_35pct/export'
    write_export(first, stp.export(architecture), config, stp, architecture)
    for target in {target_of(path) for path in INHERITING} - {35}:
        shutil.copytree(first, root / f'work_dirs/r50_{target}pct/export')
    return root


def test_there_is_a_config_for_every_row_of_table_6():
    found = {target_of(path) for path in INHERITING if path.parent.name == 'mask_rcnn'}
    assert found == {15, 35, 55}
    assert TABLE_6.is_file()
    assert {path.parent.name for path in INHERITING} >= {'faster_rcnn', 'retinanet', 'fcos'}


@pytest.mark.parametrize(
    'path', [TABLE_6, *(p for p in INHERITING if p.parent.name == 'mask_rcnn')],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_schedule_is_the_paper_s(path, copied):
    """Section 4.3: AdamW 1e-4, weight decay 0.1, 12 epochs, batch 16, a tenth after 8 and 11."""
    config = Config.fromfile(copied / path.relative_to(ROOT.parent))
    optimizer = config.optim_wrapper.optimizer
    assert {k: optimizer[k] for k in ('type', 'lr', 'weight_decay')} == dict(
        type='AdamW', lr=1e-4, weight_decay=0.1
    )
    assert 'momentum' not in optimizer
    assert config.train_cfg.max_epochs == 12
    *_, steps = config.param_scheduler
    assert (steps.type, steps.gamma, steps.milestones) == ('MultiStepLR', 0.1, [8, 11])
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == 16
    assert config.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert config.val_evaluator.metric == ['bbox', 'segm']


@pytest.mark.parametrize('path', INHERITING, ids=lambda path: path.stem)
def test_detector_has_the_export_s_backbone(path, copied):
    """Built from the config, loaded from the export: its features, read by the neck."""
    config = Config.fromfile(copied / path.relative_to(ROOT.parent))
    export = copied / f'work_dirs/r50_{target_of(path)}pct/export'
    assert config.model.neck.in_channels == Config.fromfile(export / BACKBONE).compact_channels
    assert config.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert config.model.data_preprocessor.bgr_to_rgb is True
    assert config.model.backbone.init_cfg.checkpoint == str(export / WEIGHTS)
    assert (config.model.backbone.frozen_stages, config.model.backbone.norm_eval) == (1, True)
    assert config.custom_imports['imports'] == ['mmstp']
    detector = build_model(config.model, config.default_scope)
    detector.backbone.init_weights()
    weights = torch.load(export / WEIGHTS, weights_only=True)['state_dict']
    for key, tensor in detector.backbone.state_dict().items():
        assert torch.equal(tensor, weights[f'backbone.{key}'])
    detector.eval()
    with torch.no_grad():
        assert len(detector.extract_feat(torch.zeros(1, 3, 64, 96))) == 5


def test_digits_detector_reads_its_backbone():
    config = Config.fromfile(ROOT / 'mask_rcnn/mask-rcnn_r50-slim_fpn_digits.py')
    dense = Config.fromfile(ROOT / 'stp/digits_r50_35pct.py')
    own = {k: config.model.backbone[k] for k in ('depth', 'stem_channels', 'base_channels')}
    assert own == {k: dense.model.model.backbone[k] for k in own}
    assert config.model.data_preprocessor.mean == dense.data_preprocessor.mean
    assert config.model.data_preprocessor.std == dense.data_preprocessor.std
    assert len(config.train_dataloader.dataset.metainfo.classes) == 10
    assert config.model.roi_head.bbox_head.num_classes == 10
    detector = build_model(config.model, 'mmdet')
    detector.eval()
    with torch.no_grad():
        assert len(detector.extract_feat(torch.zeros(1, 3, 64, 96))) == 4


# quick: what they share with faster_rcnn, fcos; `test_detr.py`
SLOW = ('detr', 'dino', 'mask_rcnn', 'retinanet')
WHOLE = sorted(path for path in ROOT.rglob('*-stp-25pct_*_coco.py') if path.parent.name != 'stp')


def test_there_are_whole_detectors_of_every_kind_at_half_and_a_quarter():
    names = {path.parent.name for path in WHOLE}
    dense = {'faster_rcnn', 'fcos', 'mask_rcnn', 'retinanet', 'rtmdet', 'yolox'}
    assert names == dense | {'detr', 'dino'}
    for path in WHOLE:
        half = path.with_name(path.name.replace('25pct', '50pct'))
        assert Config.fromfile(half).model.target == 2 * Config.fromfile(path).model.target == 0.5


@pytest.mark.parametrize(
    'path',
    [pytest.param(p, marks=[pytest.mark.slow] if p.parent.name in SLOW else []) for p in WHOLE],
    ids=lambda path: path.stem,
)
def test_whole_detector_can_be_a_quarter(path):
    """Small images, few regions and queries: the same layers."""
    options = {'model.input_shape': (3, 128, 128), 'model.pool.size': 2}
    config = load_config(str(path), options)
    dense = config.model.model
    if 'rpn' in dense.test_cfg:
        dense.test_cfg.rpn.max_per_img = 5
    if 'num_queries' in dense:
        dense.num_queries = 50
    stp = build_stp(config)
    parts = {'neck', 'bbox_head'} if 'bbox_head' in dense else {'neck', 'rpn_head', 'roi_head'}
    if 'encoder' in dense:  # all of it is as wide as the neck's maps, which is the embedding
        parts = {'encoder', 'decoder', 'bbox_head'}
    assert parts <= {stage.name for stage in stp.supernet.space.stages}
    assert stp.alone is False
    hooks = [hook.type for hook in config.custom_hooks]
    assert hooks[-3:] == ['mmstp.PoolHook', 'mmstp.SubnetEvalHook', 'mmstp.EpochSeedHook']
    assert config.train_cfg.max_epochs in (12, 150, 300)
    assert config.default_hooks.checkpoint.save_best == 'subnet/coco/bbox_mAP'
