"""The table of networks that mmstp was tried with: the tool, and that its lists are complete."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import networks, tiny

TOOL = tiny.ROOT / 'tools/analysis_tools/coverage.py'


@pytest.fixture(scope='module')
def coverage():
    """The tool as a module, under a name that hides no other package."""
    spec = importlib.util.spec_from_file_location('coverage_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope='module')
def models(coverage):
    """The lists of networks."""
    return sys.modules['coverage_models']


@pytest.fixture
def fake(models):
    """Makes a network of a function that builds it."""
    return lambda build: models.Network('fakes', 'Fake', 'fake', build)


def _tiny():
    return networks.Tiny(), networks.TINY_INPUT


def test_network_is_converted_and_gets_a_row(coverage, fake):
    network = fake(_tiny)
    found = coverage.measure(network)
    assert 'error' not in found
    assert not coverage.failed(found)
    assert not coverage.shortcomings(found)
    cells = dict(zip(coverage._HEADER, coverage.row(network, found), strict=True))
    assert cells['network'] == 'Fake: fake'
    assert cells['input'] == '3×8×8'
    assert int(cells['blocks']) > 0
    assert 0 < float(cells['smallest MACs'].rstrip('%')) < 50
    assert cells['difference'] == '0.0'
    assert cells['slicing = masking'] == 'yes'
    assert '1 × an output of the model' in cells['fixed, and why']


def test_hanging_network_is_stopped_with_its_children(coverage, fake, tmp_path):
    def hangs():
        child = subprocess.Popen(['sleep', '987'])
        (tmp_path / 'pid').write_text(str(child.pid))
        time.sleep(987)

    start = time.monotonic()
    found = coverage.measure(fake(hangs), seconds=0.5)
    assert time.monotonic() - start < 5
    assert found['error'] == 'more than 0.5 s'
    assert coverage.shortcomings(found) == ['could not be built: more than 0.5 s']
    assert _gone(int((tmp_path / 'pid').read_text()))


def _gone(pid):
    """Whether a process has ended; whoever adopted it may take a moment to notice."""
    stat = Path(f'/proc/{pid}/stat')
    for _ in range(50):
        try:
            if stat.read_text().rpartition(')')[2].split()[0] == 'Z':
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def _exits():
    print('out of luck', file=sys.stderr, flush=True)
    os._exit(3)


def _killed():
    os.kill(os.getpid(), 11)


def _raises():
    raise ValueError('a | b\nc')


@pytest.mark.parametrize(
    ('build', 'error', 'shown'),
    [
        (_exits, 'exited with code 3: out of luck', 'exited with code 3: out of luck'),
        (_killed, 'killed by SIGSEGV', 'killed by SIGSEGV'),
        (_raises, 'ValueError: a | b\nc', r'ValueError: a \| b c'),
    ],
)
def test_crash_is_reported_and_the_run_goes_on(coverage, fake, build, error, shown):
    network = fake(build)
    found = coverage.measure(network)
    assert found['error'].startswith(error)
    assert coverage.failed(found)
    assert coverage.row(network, found)[-1].startswith(shown)
    assert coverage.measure(fake(lambda: 1 / 0))['error'] == 'ZeroDivisionError: division by zero'


def test_report_names_what_falls_short(coverage, fake, models):
    network, left_out = fake(_tiny), models.Network('fakes', 'Text', '', excluded='wants text')
    found = dict(input=(3, 8, 8), seconds=30.0, stages=1, groups=0, blocks=0, smallest=0.75,
                 fixed={'of a reason': 2}, unknown={'aten.odd': 1}, difference=0.25,
                 masking='differs')  # fmt: skip
    text = coverage.report([(network, found), (left_out, {})])
    assert '0 of 1 networks' in text
    assert 'not measured: wants text' in text
    line = next(line for line in text.splitlines() if line.startswith('- Fake: fake'))
    for part in ('no channels can be left out', '2 × of a reason', 'no handler for aten.odd',
                 'no block', '75%', 'differ by 2.5e-01', 'slicing is not masking: differs',
                 '30 s'):  # fmt: skip
        assert part in line
    assert coverage.failed(found)


def test_difference_is_of_all_outputs_and_sees_nan(coverage):
    class Subnets:
        model = nn.Identity()

        def activate(self, architecture):
            return contextlib.nullcontext()

        def export(self, architecture):
            return lambda x: x + architecture

    images = [torch.zeros(1, 3), torch.zeros(2, 3)]
    assert coverage.largest_difference(Subnets(), [0.0], images) == 0
    assert coverage.largest_difference(Subnets(), [0.0, 0.5], images) == 0.5
    assert coverage.failed(
        {'difference': coverage.largest_difference(Subnets(), [float('nan'), 0.0], images)}
    )


def test_only_is_a_part_or_a_glob(coverage, models):
    known = models.networks('torchvision')
    names = lambda *patterns: [n.name for n in coverage.select(known, patterns)]  # noqa: E731
    assert names('RESNET18') == ['resnet18']
    assert names('resnet18', 'vgg/*11') == ['resnet18', 'vgg11', 'vgg11_bn']
    with pytest.raises(LookupError, match=r"'resnet19' matches none .*near names: resnet1"):
        names('resnet19')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--source', 'torchvision', '--only', 'resnet19'], 'near names: resnet1'),
        (['--source', 'keras'], "invalid choice: 'keras'"),
        (['--only', 'resnet18', '--out', 'docs/coverage.md'], 'leave out --only'),
        (['--out', 'nowhere.md'], "'nowhere.md' is not a file"),
    ],
)
def test_wrong_options(coverage, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, 'argv', ['coverage.py', *options])
    with pytest.raises(SystemExit, match='2'):
        coverage.main()
    assert message in capsys.readouterr().err


def test_missing_timm(coverage, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'timm', None)
    monkeypatch.setattr(sys, 'argv', ['coverage.py', '--source', 'timm'])
    with pytest.raises(SystemExit, match='2'):
        coverage.main()
    assert 'pip install timm' in capsys.readouterr().err


def test_main_prints_and_writes_between_markers(coverage, models, monkeypatch, tmp_path, capsys):
    pair = [models.Network('timm', 'Fake', name, build)
            for name, build in (('good', _tiny), ('bad', _raises))]  # fmt: skip
    monkeypatch.setattr(coverage, 'networks', lambda source: pair)
    monkeypatch.setattr(coverage, '_warm_up', lambda: None)
    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- begin timm -->\nold\n<!-- end timm -->\nafter\n')
    monkeypatch.setattr(sys, 'argv', ['coverage.py', '--source', 'timm', '--out', str(page)])
    assert coverage.main() == 1
    text = page.read_text()
    assert 'old' not in text
    assert 'before' in text
    assert 'after' in text
    assert '| Fake: good |' in text
    assert '- Fake: bad: could not be built: ValueError' in text
    printed = capsys.readouterr()
    assert '| Fake: good |' in printed.out
    assert '1/2 timm/Fake/good: good' in printed.err
    assert 'in _raises' in printed.err  # the traceback


def test_every_backbone_of_a_shipped_config_is_named(models):
    import mmpretrain.models  # noqa: F401
    from mmpretrain.registry import MODELS

    named = {network.family for network in models.networks('mmpretrain')}
    folder = models.mmpretrain_configs()
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
    for _, name, _ in models.MMPRETRAIN:
        assert (models.mmpretrain_configs() / f'{name}.py').is_file(), name
    assert not {family for family, _, _ in models.MMPRETRAIN} & set(models.MMPRETRAIN_EXCLUDED)


def test_every_classifier_of_torchvision_is_named(models):
    import torchvision.models

    named = [network.name for network in models.networks('torchvision')]
    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(named)
    assert len(named) == len(set(named))


def test_every_module_of_timm_is_named(models):
    timm = pytest.importorskip('timm')
    named = models.networks('timm')
    assert set(timm.list_modules()) - {network.family for network in named} == set()
    for network in named:
        assert network.name in timm.list_models(module=network.family), network.path
