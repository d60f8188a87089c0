"""The lists of networks that mmstp was tried with are complete, and can be built."""

import importlib
import pkgutil
import re
import sys

import pytest

from tests import tiny


@pytest.fixture(scope='module')
def models():
    """The lists of networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tiny.ROOT / 'tools/analysis_tools'))
        importlib.import_module('coverage_measure')
        return importlib.import_module('coverage_models')


def test_every_backbone_of_a_shipped_config_is_named(models):
    import mmpretrain.models  # noqa: F401
    from mmpretrain.registry import MODELS

    named = {network.family for network in models.networks('mmpretrain')}
    folder = sys.modules['coverage_mmpretrain'].config_folder()
    types = set()
    for path in folder.rglob('*.py'):
        text = path.read_text()
        types |= set(re.findall(r"\b(?:vision_)?(?:backbone|encoder)=dict\(\s*type='(\w+)'", text))
        for name in re.findall(r"type='(\w+)'", text):
            known = MODELS.get(name)
            if known is not None and known.__module__.startswith('mmpretrain.models.backbones'):
                types.add(name)
    assert len(types) > 60
    assert types - named == set()


def test_every_config_exists(models):
    mmpretrain = sys.modules['coverage_mmpretrain']
    for _, name, _ in mmpretrain.CONFIGS:
        assert (mmpretrain.config_folder() / f'{name}.py').is_file(), name
    assert not {family for family, _, _ in mmpretrain.CONFIGS} & set(mmpretrain.EXCLUDED)


def test_every_network_of_torchvision_is_named(models):
    from torchvision.models import detection, list_models, segmentation

    named = [network.name for network in models.networks('torchvision')]
    assert set(list_models(module=importlib.import_module('torchvision.models'))) <= set(named)
    assert set(list_models(module=segmentation)) <= set(named)
    assert {f'{name}.backbone' for name in list_models(module=detection)} <= set(named)
    assert len(named) == len(set(named))


@pytest.mark.parametrize(
    'name',
    ['lraspp_mobilenet_v3_large', 'ssdlite320_mobilenet_v3_large.backbone', 'resnet18_fpn'],
)
def test_parts_of_torchvision_are_built(models, name):
    (network,) = [n for n in models.networks('torchvision') if n.name == name]
    model, images = network.build()
    assert set(model.eval()(images))


def test_every_module_of_timm_is_named(models):
    timm = pytest.importorskip('timm')
    named = models.networks('timm')
    assert set(timm.list_modules()) - {network.family for network in named} == set()
    for network in named:
        assert network.name in timm.list_models(module=network.family), network.path


def test_every_module_of_vit_pytorch_is_named(models):
    vit_pytorch = pytest.importorskip('vit_pytorch')
    named = {network.family for network in models.networks('vit_pytorch')}
    assert {module.name for module in pkgutil.iter_modules(vit_pytorch.__path__)} - named == set()


@pytest.mark.parametrize('source', ['transformers', 'vit_pytorch'])
def test_networks_of_a_library_are_built(models, source):
    pytest.importorskip(source)
    known = [network for network in models.networks(source) if not network.excluded]
    assert len({network.path for network in known}) == len(known) > 50
    for network in known[:3]:
        model, inputs = network.build()
        out = model.eval()(**inputs) if isinstance(inputs, dict) else model.eval()(inputs)
        assert sys.modules['coverage_measure'].tensors(out), network.path
