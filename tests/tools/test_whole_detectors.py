"""Whole detectors with the tools: pruned, resumed, exported, tested, trained on, used in mmdet."""

import copy
import json
import shutil

import pytest
import torch
from mmengine.config import Config

from mmstp.cli.launch import build_stp, load_config, load_search
from mmstp.deploy.export import reload
from mmstp.deploy.onnx import run_in_onnx, session_of
from mmstp.errors import CheckpointError, ExportError
from mmstp.registry import build_model
from mmstp.stp.whole_images import whole_images
from tests import tiny

mmdet = pytest.importorskip('mmdet')
from mmdet.structures import DetDataSample  # noqa: E402

CONFIG = tiny.ROOT / 'configs/mask_rcnn/mask-rcnn-stp-50pct_r50-slim_fpn_digits.py'
META = dict(img_shape=(96, 128), ori_shape=(96, 128), scale_factor=(1.0, 1.0))
OPTIONS = {
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'test_dataloader.num_workers': 0,
    'train_cfg.max_epochs': 3,
    'train_cfg.val_interval': 3,
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.max_keep_ckpts': 3,
    'model.model.backbone.depth': 18,
    'model.model.neck.in_channels': [16, 32, 64, 128],
    'model.model.test_cfg.rpn.max_per_img': 20,
    'model.input_shape': (3, 96, 96),
    'model.pool.size': 3,
    'custom_hooks.0.end': 0.5,
    'custom_hooks.0.visits': 1,
    'custom_hooks.1.num_images': 4,
    'randomness.seed': 0,
    'log_level': 'ERROR',
}


@pytest.fixture(scope='module')
def config(call, tmp_path_factory):
    """The digits' Mask R-CNN at half of its cost, with a ResNet-18, on a few scenes."""
    folder = tmp_path_factory.mktemp('whole')
    scenes = folder / 'scenes'
    call('dataset_converters/digits_to_coco.py', '--out', scenes, '--train', 8, '--val', 4)
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(OPTIONS)
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[field].dataset.data_root = f'{scenes}/'
    annotations = f'{scenes}/annotations/instances_val2017.json'
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = annotations
    cfg.model.model.rpn_head.anchor_generator.scales = [8]
    cfg.visualizer.name = 'whole'  # else it is that of the runs before, which writes to theirs
    cfg.dump(folder / 'whole.py')
    return folder / 'whole.py'


@pytest.fixture(scope='module')
def trained(call, config, tmp_path_factory):
    """Three epochs; the search ends in the second."""
    work_dir = tmp_path_factory.mktemp('trained')
    call('train.py', config, '--work-dir', work_dir)
    # by now: MMEngine's visualizer of the first run writes for the next in this process as well
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    shutil.copy(file, work_dir)
    return work_dir


@pytest.fixture(scope='module')
def exported(call, config, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp('export')
    call('export.py', config, trained / 'epoch_3.pth', '--out', folder)
    return folder


@pytest.mark.parametrize('epoch', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_in_and_after_the_search_equals_uninterrupted(
    call, config, trained, tmp_path, epoch
):
    shutil.copy(trained / f'epoch_{epoch}.pth', tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / f'epoch_{epoch}.pth'))
    call('train.py', config, '--work-dir', tmp_path, '--resume')
    first, second = (
        torch.load(path / 'epoch_3.pth', weights_only=False) for path in (trained, tmp_path)
    )
    assert first['mmstp'] == second['mmstp']
    assert first['mmstp']['alone']
    for key, tensor in first['state_dict'].items():
        assert torch.equal(tensor, second['state_dict'][key]), key


def test_space_is_shown(call, config, capsys):
    call('search_space.py', config)
    lines = capsys.readouterr().out.splitlines()
    assert {'neck', 'rpn_head', 'roi_head'} <= {line.split(' ')[0] for line in lines}
    assert 'within 2.00%: can be met' in lines[-1]


def test_what_is_logged(trained):
    lines = (trained / 'scalars.json').read_text().splitlines()
    train = [json.loads(line) for line in lines if 'loss_rpn_cls' in line]
    searched = [line for line in train if 'loss_target' in line]
    assert len(searched) == round(len(train) / 2)
    assert {'loss_mask', 'loss_bbox', 'loss_target_ce', 'loss_support'} <= set(searched[0])


@pytest.mark.filterwarnings('ignore:Failed to add <class')  # mmdet's, without a work dir
def test_export_is_the_survivor(config, trained, exported):
    """In mmdet's own tools, from the config and weights alone."""
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    cfg = load_config(str(config))
    stp = build_stp(cfg)
    load_search(stp, str(trained / 'epoch_3.pth'), cfg)
    detector = init_detector(
        str(exported / 'compact.py'), str(exported / 'compact.pth'), device='cpu'
    )
    assert type(detector).__name__ == 'MaskRCNN'
    own = stp.model.eval().state_dict()
    assert own.keys() == detector.state_dict().keys()
    for key, tensor in detector.state_dict().items():
        assert torch.equal(tensor, own[key]), key
    image = torch.zeros(96, 96, 3, dtype=torch.uint8).numpy()
    found = inference_detector(detector, image).pred_instances
    inferencer = DetInferencer(
        str(exported / 'compact.py'), str(exported / 'compact.pth'), device='cpu',
        show_progress=False,
    )  # fmt: skip
    [other] = inferencer(image)['predictions']
    assert other['scores'] == pytest.approx(found.scores.tolist())


def test_export_is_tested_and_trained_on(call, trained, exported, tmp_path):
    compact = exported / 'compact.py'
    call('test.py', compact, exported / 'compact.pth', '--work-dir', tmp_path / 'test',
         '--out', tmp_path / 'metrics.json', '--out-item', 'metrics')  # fmt: skip
    lines = (trained / 'scalars.json').read_text().splitlines()
    logged = [json.loads(line) for line in lines if 'subnet/coco/bbox_mAP' in line][-1]
    for name, value in json.loads((tmp_path / 'metrics.json').read_text()).items():
        assert value == pytest.approx(logged[f'subnet/{name}']), name
    call('train.py', compact, '--work-dir', tmp_path / 'train', '--cfg-options',
         f'load_from={exported / "compact.pth"}', 'train_cfg.max_epochs=1')  # fmt: skip
    weights = torch.load(tmp_path / 'train/epoch_1.pth', weights_only=False)['state_dict']
    start = torch.load(exported / 'compact.pth', weights_only=True)['state_dict']
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in start.items()}


def test_pretrained_detector_computes_what_it_did(config, tmp_path):
    """Channels ordered by importance; a checkpoint of another detector is named."""
    cfg = Config.fromfile(config)
    dense = build_model(cfg.model.model, 'mmdet')
    torch.save({'state_dict': dense.state_dict()}, tmp_path / 'dense.pth')
    cfg.model.pretrained = str(tmp_path / 'dense.pth')
    stp = build_stp(cfg)
    stp.init_weights()
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        for x, y in zip(
            stp.task.outputs(stp.model.eval(), images, whole_images(images)),
            stp.task.outputs(dense.eval(), images, whole_images(images)),
            strict=True,
        ):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)
    torch.save({'state_dict': dense.backbone.state_dict()}, tmp_path / 'dense.pth')
    with pytest.raises(CheckpointError, match=r'model\.pretrained=.* does not fit MaskRCNN'):
        build_stp(cfg).init_weights()


@pytest.fixture(scope='module')
def in_onnx(call, exported, tmp_path_factory):
    """The export with its ONNX file, and what running that gives for a batch of other images."""
    pytest.importorskip('onnxscript')
    folder = tmp_path_factory.mktemp('onnx') / 'export'
    shutil.copytree(exported, folder)
    call('export.py', folder / 'compact.py', folder / 'compact.pth', '--out', folder, '--onnx')
    return folder


def test_onnx_names_outputs_by_their_place(in_onnx):
    onnx = pytest.importorskip('onnx')
    graph = onnx.load(in_onnx / 'compact.onnx').graph
    assert [value.name for value in graph.input] == ['images']
    names = [value.name for value in graph.output]
    assert names[:2] == ['output_0_0', 'output_0_1']
    assert 'output_1_1_0' in names


def test_onnx_has_the_maps_of_the_first_stage(in_onnx):
    outputs = session_of(str(in_onnx / 'compact.onnx'))(torch.randn(3, 3, 96, 128))
    anchors, boxes, sizes = 3, 4, [(24, 32), (12, 16), (6, 8), (3, 4)]
    features, rest = outputs[:4], outputs[4:]
    assert [x.shape[2:] for x in features] == sizes
    assert [x.shape for x in rest] == [
        *((3, anchors, *size) for size in sizes),
        *((3, boxes * anchors, *size) for size in sizes),
    ]


def test_detections_with_onnx_are_those_of_pytorch(in_onnx):
    """At another size than the export was traced at, with as many images as come."""
    network = reload(in_onnx).eval()
    network.roi_head.test_cfg.score_thr = 0.0  # three epochs make it sure of nothing
    samples = [DetDataSample(metainfo=META) for _ in range(3)]
    images = torch.randn(3, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images, copy.deepcopy(samples), mode='predict')
        run_in_onnx(network, in_onnx / 'compact.onnx', (3, 96, 96))
        for part in (network.backbone, network.neck, network.rpn_head):
            for parameter in part.parameters():
                parameter.zero_()  # the file has them
        found = network(images, samples, mode='predict')
    for own, other in zip(found, expected, strict=True):
        assert len(other.pred_instances)
        assert_same_detections(own.pred_instances, other.pred_instances)


def assert_same_detections(own, other):
    """Each has its like in the other: detections whose scores nearly tie come in either order."""
    likes = torch.isclose(own.scores[:, None], other.scores, rtol=1e-3, atol=1e-4)
    likes &= torch.isclose(own.bboxes[:, None], other.bboxes, rtol=1e-3, atol=1e-2).all(-1)
    likes &= own.labels[:, None] == other.labels
    assert len(own) == len(other)
    assert likes.any(0).all()
    assert likes.any(1).all()


def test_onnx_is_tested_by_the_tool(call, in_onnx, tmp_path):
    metrics = []
    for weights in ('compact.pth', 'compact.onnx'):
        out = tmp_path / f'{weights}.json'
        call('test.py', in_onnx / 'compact.py', in_onnx / weights, '--work-dir', tmp_path / 'test',
             '--out', out, '--out-item', 'metrics')  # fmt: skip
        metrics.append(json.loads(out.read_text()))
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        assert metrics[1][name] == pytest.approx(value, abs=1e-3), name


def test_onnx_of_another_export_is_refused(in_onnx):
    network = reload(in_onnx)
    network.rpn_head.rpn_cls = torch.nn.Conv2d(network.rpn_head.rpn_cls.in_channels, 6, 1)
    with pytest.raises(ExportError, match=r'compact\.onnx gives outputs of shapes .* of another'):
        run_in_onnx(network, in_onnx / 'compact.onnx', (3, 96, 96))
