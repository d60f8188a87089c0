"""The package as it is installed."""

import subprocess
import sys
from importlib.metadata import requires

import pytest

import mmstp
from tests.tiny import ROOT


@pytest.mark.parametrize('missing', ['mmengine', 'mmpretrain'])
def test_import_says_what_is_missing(missing):
    code = f'import sys; sys.modules[{missing!r}] = None; import mmstp'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"'{missing}' is missing" in done.stderr
    assert "pip install 'mmstp[onedl]'" in done.stderr


def test_everything_public_is_there():
    for name in mmstp.__all__:
        assert getattr(mmstp, name) is not None


def test_installing_replaces_nothing():
    try:
        needed = requires('mmstp')
    except ModuleNotFoundError:
        pytest.skip('mmstp is not installed here, only on the path')
    always = [line for line in needed if 'extra ==' not in line]
    assert sorted(line.split('>')[0] for line in always) == ['numpy', 'torch']
