"""The package as it is installed."""

import ast
import re
import subprocess
import sys
from importlib.metadata import requires

import pytest

import mmstp
from tests.tiny import ROOT

# A process in which OpenMMLab's packages cannot be imported, as where they are not installed.
WITHOUT_OPENMMLAB = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'torchvision'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Nowhere())
"""


def run(code):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_torch_and_numpy_suffice_for_all_but_openmmlab():
    """Supernet, space, costs, pool, losses, statistics, cutting."""
    done = run(
        WITHOUT_OPENMMLAB
        + """
import random
import torch
from torch import nn
import mmstp
from mmstp.search.budget import feasible_rows
from mmstp.subnets.cut import compact

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3),
                         nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 4)).eval()

x = torch.randn(2, 3, 8, 8)
supernet = mmstp.Supernet(network(), x, stem=True)
space, cost = supernet.space, supernet.cost
budget = mmstp.Budget.of(0.5, 'macs', 0.3, space, cost)
rows = feasible_rows(space, cost, budget, 10)
pool = mmstp.ArchitecturePool([space.decode(row) for row in rows])
architecture = pool.sample()
pool.update(architecture, float(mmstp.normalized_kl(torch.randn(2, 4), torch.randn(2, 4))))
small = supernet.export(architecture)
mmstp.calibrate(small, [x])
with torch.no_grad(), supernet.activate(architecture):
    y = supernet.model(x)
again = network()
compact(again, supernet.compact_spec(architecture))
again.load_state_dict(supernet.export(architecture).state_dict())
assert torch.equal(again(x), y)
print('all of it')
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'all of it\n'


def test_what_needs_openmmlab_says_what_is_missing():
    names = ['STP', 'CompactBackbone', 'WideResNet', 'Digits', 'PoolHook']
    done = run(
        f'{WITHOUT_OPENMMLAB}\n'
        'import mmstp\n'
        f'for name in {names}:\n'
        '    try:\n'
        '        getattr(mmstp, name)\n'
        '    except ImportError as error:\n'
        '        print(error)'
    )
    assert done.returncode == 0, done.stderr
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        assert line.startswith(f"mmstp.{name} needs OpenMMLab's packages, and 'mm")
        assert "pip install 'mmstp[onedl]'" in line


def test_importing_loads_nothing_of_openmmlab():
    done = run(
        'import sys, mmstp\n'
        "print(sorted({'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'torchvision'} & {*sys.modules}))"
    )
    assert done.stdout == '[]\n', done.stderr


def test_names_for_type_checkers_are_those_that_are_loaded():
    tree = ast.parse((ROOT / 'mmstp/__init__.py').read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and node.body[0].lineno < 45]
    found = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert found == mmstp._WITH_OPENMMLAB


def test_every_error_has_the_base():
    assert {name for name in mmstp.errors.__all__ if name != 'MmstpError'} == {
        cls.__name__ for cls in subclasses(mmstp.MmstpError)
    }


def subclasses(cls):
    return [other for one in cls.__subclasses__() for other in (one, *subclasses(one))]


def test_everything_public_is_there():
    for name in mmstp.__all__:
        assert getattr(mmstp, name) is not None


def test_installing_replaces_nothing():
    try:
        needed = requires('mmstp')
    except ModuleNotFoundError:
        pytest.skip('mmstp is not installed here, only on the path')
    always = [line for line in needed if 'extra ==' not in line]
    assert sorted(re.split('[<>=]', line)[0] for line in always) == ['numpy', 'torch']


def test_every_decision_is_listed_with_its_title_and_status():
    folder = ROOT / 'docs/decisions'
    listed = (folder / 'README.md').read_text()
    for record in sorted(folder.glob('0*.md')):
        text = record.read_text()
        title = text.splitlines()[0].removeprefix(f'# {record.name[:4]} ')
        status = re.search(r'^Status: ([^·]+) ·', text, re.MULTILINE)[1]
        status = re.sub(r'\[(\d+)\]\(.*\)', r'\1', status)
        assert f'| {record.name[:4]} | [{title}]({record.name}) | {status} |' in listed
