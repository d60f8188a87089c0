"""Exports of transformers for detection: parts that their config gives no type."""

import pytest
import torch
from mmengine.config import Config

from mmstp.cli.exporting import export_subnet
from mmstp.deploy.export import reload
from mmstp.deploy.onnx import export_onnx, run_in_onnx, session_of
from mmstp.errors import CheckpointError, ExportError
from mmstp.registry import build_model
from mmstp.stp.two_stages import dense_part
from tests import tiny
from tests.networks import equal, randomize

pytest.importorskip('mmdet')
from tests.detr import detector, images, samples

DIGITS = tiny.ROOT / 'configs/mask_rcnn/mask-rcnn-stp-50pct_r50-slim_fpn_digits.py'
SHAPE = (64, 96)
IMAGE = torch.zeros(1, 3, *SHAPE)


def algorithm(config, name):
    """STP around a detector, and its smallest subnet."""
    config.model = dict(
        type='mmstp.STP', model=detector(name), target=0.6, tolerance=0.3,
        input_shape=(3, *SHAPE), pool=dict(size=2, seed=0),
    )  # fmt: skip
    stp = build_model(config.model.to_dict(), 'mmdet')
    randomize(stp.model)
    return stp, stp.supernet.space.smallest


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """DETR as its smallest subnet, and the folder that it was written to."""
    config = Config.fromfile(DIGITS)
    stp, smallest = algorithm(config, 'detr')
    folder = tmp_path_factory.mktemp('detr') / 'export'
    export_subnet(folder, config, stp, smallest, num_images=0)  # compares what it has written
    return stp.export(smallest).eval(), folder


def test_export_is_the_detectors_own_class(exported):
    network, folder = exported
    model = Config.fromfile(folder / 'compact.py').model
    assert (model.type, model.dense) == ('mmstp.CompactModel', 'mmdet.DETR')
    assert (model.neck.type, model.bbox_head.type) == ('mmstp.CompactPart',) * 2
    again = reload(folder).eval()
    assert type(again).__name__ == 'DETR'
    known = samples((64, 96), (40, 96), (64, 50))
    with torch.no_grad():
        assert equal(*(net(images(known), known, mode='tensor') for net in (network, again)))


def test_weights_that_do_not_fit_a_part_without_stages_are_of_no_architecture(exported):
    neck = reload(exported[1]).neck
    with pytest.raises(CheckpointError, match='the weights do not fit this') as error:
        neck.load_state_dict({})
    assert 'This network is' not in str(error.value)


def test_mmdet_takes_it(exported):
    from mmdet.apis import inference_detector, init_detector

    _, folder = exported
    found = init_detector(str(folder / 'compact.py'), str(folder / 'compact.pth'), device='cpu')
    image = torch.zeros(96, 96, 3, dtype=torch.uint8).numpy()
    predicted = inference_detector(found, image).pred_instances
    own = inference_detector(_with_config(reload(folder), found.cfg), image).pred_instances
    assert len(predicted) == 12
    assert torch.equal(predicted.scores, own.scores)
    assert torch.equal(predicted.bboxes, own.bboxes)


def _with_config(network, cfg):
    network.cfg = cfg
    return network.eval()


def assert_same_outputs(path, network, known):
    with torch.no_grad():
        expected = network(images(known), known, mode='tensor')
    for own, other in zip(session_of(str(path))(images(known)), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['deformable', 'dino'])
def test_with_deformable_attention_it_is_trained_on_and_anew(name, tmp_path):
    """Both ask `init_weights`, in which the modules count their heads."""
    config = Config.fromfile(DIGITS)
    stp, smallest = algorithm(config, name)
    export_subnet(tmp_path, config, stp, smallest, num_images=0)
    network = reload(tmp_path)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.init_weights()
    assert {key: value.shape for key, value in network.state_dict().items()} == shapes
    known = samples(SHAPE, SHAPE)
    losses = network.train()(images(known), known, mode='loss')
    network.parse_losses(losses)[0].backward()


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'free'), [('deformable', ('batch',)), ('dino', ())])
def test_onnx_with_deformable_attention_is_of_one_size(name, free, tmp_path):
    """Also with modules that are shared, which torch.export wraps (Deformable DETR's heads)."""
    pytest.importorskip('onnxscript')
    stp, smallest = algorithm(Config.fromfile(DIGITS), name)
    network, path = dense_part(stp.export(smallest)).eval(), tmp_path / 'compact.onnx'
    assert export_onnx(path, network, IMAGE).free == free
    assert_same_outputs(path, network, samples(SHAPE))


@pytest.mark.slow
def test_onnx_is_of_whole_images(exported, tmp_path):
    """It gives what the heads do, and is not taken for batches with padding."""
    pytest.importorskip('onnxscript')
    _, folder = exported
    network, path = dense_part(reload(folder)).eval(), tmp_path / 'compact.onnx'
    assert export_onnx(path, network, IMAGE).free == ('batch', 'height', 'width')
    assert_same_outputs(path, network, samples((96, 64)))
    with pytest.raises(ExportError, match='DETR masks what is padding in a batch'):
        run_in_onnx(reload(folder), path, (3, *SHAPE))
