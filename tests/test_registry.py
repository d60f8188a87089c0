"""The scope ``mmstp`` is found from mmpretrain's registries, and a failed import is not hidden."""

import subprocess
import sys

import mmpretrain.registry
import pytest
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope, Registry

from mmstp import registry
from mmstp.backbones.wide_resnet import WideResNet
from mmstp.datasets.sklearn_digits import Digits
from mmstp.datasets.tiny_imagenet import TinyImageNet


@pytest.mark.parametrize('name', ['DATASETS', 'HOOKS', 'MODELS'])
def test_scope_and_parent(name):
    ours = getattr(registry, name)
    assert ours.scope == 'mmstp'
    assert ours.parent is getattr(mmpretrain.registry, name).parent


@pytest.mark.parametrize(
    ('name', 'key', 'cls'),
    [
        ('MODELS', 'mmstp.WideResNet', WideResNet),
        ('DATASETS', 'mmstp.Digits', Digits),
        ('DATASETS', 'mmstp.TinyImageNet', TinyImageNet),
    ],
)
def test_found_from_mmpretrain(name, key, cls):
    assert getattr(mmpretrain.registry, name).get(key) is cls


def test_built_from_mmpretrain_in_a_fresh_process():
    """Nothing but ``import mmstp`` registers the classes: the locations do."""
    code = (
        'import mmstp\n'
        'from mmpretrain.registry import MODELS\n'
        "model = MODELS.build(dict(type='mmstp.WideResNet', depth=10, widen_factor=1))\n"
        'assert model.out_channels == 64\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)


def test_unknown_name_is_named():
    with (
        DefaultScope.overwrite_default_scope('mmpretrain'),
        pytest.raises((KeyError, RuntimeError), match=r'mmstp\.NoSuchModel'),
    ):
        mmpretrain.registry.MODELS.build(dict(type='mmstp.NoSuchModel'))


def test_import_error_in_a_location_names_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / 'broken_location.py').write_text('import no_such_package\n')
    monkeypatch.syspath_prepend(tmp_path)
    child = Registry(
        'model', parent=MMENGINE_MODELS, scope='brokenscope', locations=['broken_location']
    )
    try:
        with pytest.raises(ModuleNotFoundError, match='no_such_package'):
            child.get('Anything')
    finally:
        MMENGINE_MODELS.children.pop('brokenscope')
