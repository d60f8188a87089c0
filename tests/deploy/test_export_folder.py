"""Folders in which MMEngine could not read the configs of an export are refused up front."""

import pytest
import torch

from mmstp.deploy.export import (
    check_folder,
    load_backbone,
    max_abs_difference,
    reload,
    write_export,
)
from mmstp.errors import ExportError
from tests import tiny

BAD = ["it's", 'a\\b', '{{ fileDirname }}', '{{$HOME:x}}', 'two\nlines', 'a\rb']
GOOD = ['plain', 'with space', 'a"b', '{one}', '$HOME', '%s', '#1', 'é']


@pytest.fixture(scope='module')
def stp():
    return tiny.stp()


@pytest.mark.parametrize('name', BAD)
def test_refused_before_anything_is_written(name, stp, tmp_path):
    folder = tmp_path / name / 'out'
    network = stp.export()
    with pytest.raises(ExportError) as error:
        write_export(folder, network, tiny.config(), stp, stp.pool.best)
    assert f'an export cannot lie in the folder {str(folder)!r}, whose path holds ' in str(
        error.value
    )
    assert 'accepted are paths without "\'", ' in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_exports_that_were_moved_there_too(tmp_path):
    for read in (reload, load_backbone):
        with pytest.raises(ExportError, match='an export cannot lie in the folder'):
            read(tmp_path / "it's")


def test_relative_paths_are_those_of_the_present_folder(tmp_path, monkeypatch):
    (tmp_path / "it's").mkdir()
    monkeypatch.chdir(tmp_path / "it's")
    with pytest.raises(ExportError, match='cannot lie'):
        check_folder('out')


@pytest.mark.parametrize('name', GOOD)
def test_other_names_are_read(name, stp, tmp_path):
    """What is not refused works."""
    network = stp.export()
    write_export(tmp_path / name, network, tiny.config(), stp, stp.pool.best)
    assert max_abs_difference(network, reload(tmp_path / name), (2, 3, 16, 16)) == 0
    weights = load_backbone(tmp_path / name).state_dict()
    own = network.backbone.state_dict()
    assert all(torch.equal(weights[key], own[key]) for key in own)
