"""Plans and weights that are not those of the network they are applied to."""

import copy

import pytest
import torch

from mmstp.deploy.export import CONFIG, WEIGHTS, read_config, reload, write_export
from mmstp.errors import CheckpointError, CompactSpecError
from mmstp.registry import build_model
from tests import tiny


@pytest.fixture(scope='module')
def stp():
    """Its stem may be narrow."""
    return tiny.stp(model__space__stem=True)


@pytest.fixture
def folder(stp, tmp_path):
    smallest = stp.supernet.space.smallest
    write_export(tmp_path, stp.export(smallest), tiny.config(), stp, smallest)
    return tmp_path


def test_a_kernel_is_not_cut(folder):
    """ResNet's stem is 7×7, that of ResNet_CIFAR 3×3."""
    backbone = read_config(folder, CONFIG).model.backbone
    for kind in ('mmpretrain.ResNet', 'mmdet.ResNet'):
        other = copy.deepcopy(backbone)
        other.backbone.type = kind
        with pytest.raises(
            CompactSpecError,
            match=r'conv1\.weight: shape \(8, 3, 3, 3\) is not within the dense \(16, 3, 7, 7\), '
            r'whose kernel is of another size.*made for another network than ResNet',
        ):
            build_model(other)


def test_weights_that_are_not_finite_are_not_exported(stp, tmp_path):
    network = stp.export()
    network.head.fc.bias.data[3] = float('nan')
    with pytest.raises(CheckpointError, match=r'nothing is exported: head\.fc\.bias holds 1 of 10'):
        write_export(tmp_path / 'out', network, tiny.config(), stp, stp.pool.best)
    assert not (tmp_path / 'out').exists()


def test_nor_reloaded(folder):
    content = torch.load(folder / WEIGHTS, weights_only=True)
    content['state_dict']['head.fc.bias'].fill_(float('inf'))
    torch.save(content, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r'compact\.pth.*head\.fc\.bias holds 10 of 10'):
        reload(folder)


@pytest.mark.parametrize('form', [str, lambda a: [list(a.depths), list(a.widths)]])
def test_an_architecture_in_every_form(form, stp, tmp_path):
    architecture = stp.supernet.space.smallest
    found = write_export(tmp_path, stp.export(architecture), tiny.config(), stp, form(architecture))
    assert found['architecture'] == str(architecture)
