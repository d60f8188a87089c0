"""The table of networks that mmstp was tried with: the tool, and that its lists are complete."""

import contextlib
import importlib.util
import os
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


@pytest.fixture(scope='module')
def measuring(coverage):
    """What is found out about one network."""
    return sys.modules['coverage_measure']


@pytest.fixture(scope='module')
def reporting(coverage):
    """The tables."""
    return sys.modules['coverage_report']


@pytest.fixture
def fake(models):
    """Makes a network of a function that builds it."""
    return lambda build: models.Network('fakes', 'Fake', 'fake', build)


def _tiny():
    return networks.Tiny(), networks.TINY_INPUT


def _cells(reporting, network, found):
    return dict(zip(reporting.HEADER, reporting.row(network, found), strict=True))


def test_network_is_converted_and_gets_a_row(coverage, reporting, fake):
    network = fake(_tiny)
    found = coverage.measure(network)
    assert 'error' not in found
    assert not coverage.failed(found)
    assert not coverage.shortcomings(found)
    cells = _cells(reporting, network, found)
    assert cells['network'] == 'Fake: fake'
    assert cells['input'] == '3×8×8'
    assert int(cells['blocks']) > 0
    assert 0 < float(cells['smallest MACs'].rstrip('%')) < 50
    assert cells['difference'] == '0.0'
    assert cells['batches'] == 'all'
    assert cells['slicing = masking'] == 'yes'
    assert cells['other sizes'] == 'yes'
    assert '1 × an output of the model' in cells['layers that stay, and why']
    assert cells['blocks that stay, and why'] == cells['no handler'] == ''


class _Twice(nn.Module):
    """A block that is called twice, over tokens of which a word says what each is."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 32)
        self.block = _Residual(32)
        self.head = nn.Linear(32, 4)

    def forward(self, image, words, mask=None):
        x = image + self.words(words) * (1 if mask is None else mask)
        return {'logits': self.head(self.block(self.block(x)).cumsum(1)), 'none': None}


class _Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def test_arguments_by_name_and_what_stays(coverage, reporting, fake):
    inputs = {'image': torch.zeros(1, 6, 32), 'words': torch.tensor([[1, 2, 3, 4, 5, 6]])}
    network = fake(lambda: (_Twice(), inputs))
    found = coverage.measure(network)
    assert 'error' not in found, found
    cells = _cells(reporting, network, found)
    assert cells['input'] == '6×32; 6'
    assert (cells['difference'], cells['batches']) == ('0.0', 'all')
    assert cells['other sizes'] == 'not run'  # neither images nor tokens alone
    assert cells['blocks that stay, and why'] == ('1 × its module is called more than once (block)')


def test_batch_keeps_what_is_no_batch(measuring):
    generator = torch.Generator().manual_seed(0)
    words, table = torch.tensor([[3, 5]]), torch.zeros(4, 2)
    image, (drawn, same), none = measuring.batch(
        (torch.zeros(1, 3, 8, 8), [words, table], None), 5, generator
    )
    assert image.shape == (5, 3, 8, 8)
    assert image.std() > 0.5
    assert drawn.shape == (5, 2)
    assert {3, 5} >= set(drawn.flatten().tolist())
    assert same is table
    assert none is None


@pytest.mark.parametrize(
    ('shapes', 'larger'),
    [
        ([(1, 3, 64, 64)], [(1, 3, 96, 128)]),
        ([(2, 16), (2, 16)], [(2, 24), (2, 24)]),
        ([(1, 3, 64)], None),
        ([(1, 3, 64, 64), (1, 16)], None),
    ],
)
def test_another_size(measuring, shapes, larger):
    given = tuple(torch.zeros(shape) for shape in shapes)
    found = measuring.larger(given, torch.Generator())
    assert (None if found is None else [tuple(x.shape) for x in found]) == larger


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
def test_crash_is_reported_and_the_run_goes_on(coverage, reporting, fake, build, error, shown):
    network = fake(build)
    found = coverage.measure(network)
    assert found['error'].startswith(error)
    assert coverage.failed(found)
    assert _cells(reporting, network, found)[reporting.WHY].startswith(shown)
    assert coverage.measure(fake(lambda: 1 / 0))['error'] == 'ZeroDivisionError: division by zero'


def test_report_names_what_falls_short(coverage, fake, models):
    network, left_out = fake(_tiny), models.Network('fakes', 'Text', '', excluded='wants text')
    found = dict(inputs=[(3, 8, 8)], seconds=30.0, stages=1, groups=0, blocks=0, smallest=0.75,
                 fixed={'of a reason': 2}, unknown={'aten.odd': 1}, difference=0.25,
                 unskippable={'called twice': ['a.b', 'c']}, batches=[1], one_batch='folded in',
                 masking='differs')  # fmt: skip
    text = coverage.report([(network, found), (left_out, {})])
    assert '0 of 1 networks' in text
    assert 'not measured: wants text' in text
    line = next(line for line in text.splitlines() if line.startswith('- Fake: fake'))
    for part in ('no channels can be left out', '2 × of a reason', 'no handler for aten.odd (1',
                 'no block can be left out (2 × called twice (a.b))', '75%', 'differ by 2.5e-01',
                 'batches of another size: folded in', 'slicing is not masking: differs',
                 '30 s'):  # fmt: skip
        assert part in line
    assert coverage.failed(found)


def test_no_folder_of_this_machine_is_shown(reporting):
    said = 'ValueError at /home/me/x-1.0/lib/net.py:7 (a / b, b (h d) -> b h/2 d), docs/a.md'
    assert reporting.short(said) == said.replace('/home/me/x-1.0/lib/', '')


def test_what_became_less_is_said(coverage, reporting, models, fake):
    page = """
<!-- begin fakes -->
| network | input | seconds | width groups | blocks | smallest MACs | difference |
| --- | --- | --- | --- | --- | --- | --- |
| Fake: fake | 3×8×8 | 0.2 | 12 | 4 | 7.3% | 0.0 |
| Fake: a \\| b | 3×8×8 | 0.2 | 9 | 4 | 7.3% | 0.0 |
| Fake: bad | 3×8×8 |  |  |  |  | ValueError |
<!-- end fakes -->
"""
    lines = reporting.earlier(page)
    assert lines['fakes Fake: a \\| b']['width groups'] == '9'
    found = dict(seconds=1.0, groups=12, blocks=4, smallest=0.0732, difference=0.0)
    less = lambda **other: list(reporting.losses(fake(_tiny), {**found, **other}, lines))  # noqa: E731
    assert less() == []
    assert less(groups=11, blocks=5) == ['width groups 12 → 11']
    assert less(blocks=0, smallest=0.1) == ['blocks 4 → 0', 'smallest MACs 7.3% → 10.0%']
    assert less(difference=0.1) == ['was right before']
    assert list(reporting.losses(fake(_tiny), {'error': 'no'}, lines)) == ['was converted before']
    new = models.Network('fakes', 'Fake', 'bad', _tiny)
    assert list(reporting.losses(new, {'error': 'no'}, lines)) == []


def test_notes_are_gone_on_with(coverage, fake, tmp_path, monkeypatch):
    network, path = fake(_tiny), tmp_path / 'notes.jsonl'
    coverage.Notes(path).add(network, {'seconds': 1.0})
    with path.open('a') as file:
        file.write('{"network": "fak')  # interrupted
    assert coverage.Notes(path).get(network) == {'seconds': 1.0}
    assert coverage.Notes(None).get(network) is None
    monkeypatch.setattr(coverage, '_fingerprint', lambda: 'other code')
    assert coverage.Notes(path).get(network) is None


def test_difference_is_of_all_outputs_and_sees_nan(coverage, measuring):
    class Subnets:
        model = nn.Identity()

        def activate(self, architecture):
            return contextlib.nullcontext()

        def export(self, architecture):
            return lambda x: x + architecture

    images = [(torch.zeros(1, 3),), (torch.zeros(2, 3),)]
    difference = lambda *added: measuring.largest_difference(Subnets(), added, images)  # noqa: E731
    assert difference(0.0) == 0
    assert difference(0.0, 0.5) == 0.5
    assert coverage.failed({'difference': difference(float('nan'), 0.0)})


def test_only_is_a_part_or_a_glob(coverage, models):
    known = models.networks('torchvision')
    names = lambda *patterns: [n.name for n in coverage.select(known, patterns)]  # noqa: E731
    assert names('RESNET18') == ['resnet18', 'resnet18_fpn']
    assert names('/resnet18', 'vgg/*11') == ['resnet18', 'vgg11', 'vgg11_bn', 'resnet18_fpn']
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


@pytest.mark.parametrize('source', ['timm', 'transformers', 'vit_pytorch'])
def test_missing_library(coverage, monkeypatch, capsys, source):
    monkeypatch.setitem(sys.modules, source, None)
    monkeypatch.setattr(sys, 'argv', ['coverage.py', '--source', source])
    with pytest.raises(SystemExit, match='2'):
        coverage.main()
    assert f'pip install {source}' in capsys.readouterr().err


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
