"""The examples of docs/extending.md, as they are printed."""

import importlib
import re

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmstp import STP
from mmstp.analysis.operators.table import OPERATORS
from mmstp.analysis.walk import NO_HANDLER
from mmstp.cli.space_report import describe_space
from mmstp.registry import TASKS
from mmstp.search.budget import Budget
from mmstp.subnets.attention import FORWARDS
from mmstp.subnets.attributes import ATTRIBUTE_RULES
from mmstp.subnets.check import FAILS
from tests import tiny
from tests.relations import RELATIONS, Case, gradient_is_that_of_the_export, some

PAGE = tiny.ROOT / 'docs' / 'extending.md'


@pytest.fixture(autouse=True)
def registries():
    """As they were, when the test is over."""
    before = [(registry, dict(registry)) for registry in (OPERATORS, FORWARDS, ATTRIBUTE_RULES)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
    TASKS.module_dict.pop('Segmentation', None)


def example(heading):
    """What the Python blocks of a section leave, run one after the other."""
    text = PAGE.read_text()
    start = text.index(f'\n## {heading}\n')
    stop = text.find('\n## ', start + 1)
    names = {'__name__': 'extending'}
    for block in re.finditer(r'^```python\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        if start < block.start() < (stop if stop > 0 else len(text)):
            lines = text[: block.start(1)].count('\n')  # tracebacks then name the page's own
            exec(compile('\n' * lines + block[1], str(PAGE), 'exec'), names)
    return names


def report(supernet):
    budget = Budget.of(0.9, 'macs', 0.3, supernet.space, supernet.cost)
    return describe_space(supernet, {'': budget})[0]


def prunes(supernet):
    """The relations that every network has to satisfy; how few multiply-adds its subnets take."""
    space, x = supernet.space, torch.randn_like(supernet.inputs[0])
    case = Case(supernet, [x], some(space))
    for relation in RELATIONS:
        if relation is not gradient_is_that_of_the_export:  # the page's operator has none
            relation(case)
    low, dense = supernet.cost.macs([space.smallest, space.largest])
    return low / dense


def test_operator():
    assert 'example::soft_threshold' not in OPERATORS
    names = example('An operator')
    before, supernet = names['before'], names['supernet']
    assert f"    2, 1: operator 'example::soft_threshold' {NO_HANDLER}" in report(before)
    assert f"    operator 'example::soft_threshold' {NO_HANDLER}; called by 2" in report(before)
    assert NO_HANDLER not in report(supernet)
    assert prunes(supernet) < prunes(before)


def test_module():
    names = example('A module')
    before, supernet = names['before'], names['supernet']
    assert f'attention: {FAILS}: ValueError' in report(before)
    assert 'fails when narrowed' not in report(supernet)
    assert prunes(supernet) < prunes(before)


class Segmenter(BaseModel):
    """As those of mmseg are called, and trained on all that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3))
        self.decode_head = nn.Sequential(nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 5, 1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.decode_head(self.backbone(inputs))
        if mode == 'tensor':
            return maps
        return {'loss_seg': nn.functional.cross_entropy(maps, torch.zeros(maps[:, 0].shape).long())}


def test_task():
    example('A task')
    stp = STP(
        Segmenter(), target=0.4, task='Segmentation', input_shape=(3, 12, 12), target_ce=2.0,
        tolerance=0.2, space=dict(divisor=4), pool=dict(size=3, seed=0),
    )  # fmt: skip
    assert [stage.name for stage in stp.supernet.space.stages][-1] == 'decode_head'
    images = torch.randn(2, 3, 12, 12)
    losses = stp(images, [], mode='loss')
    assert set(losses) == {'loss_seg', 'loss_target_ce', 'loss_target', 'loss_support'}
    (target,) = [a for a, visits in stp.pool.visits.items() if visits]
    network = stp.export(target)
    own = network(images, mode='loss')['loss_seg']
    torch.testing.assert_close(losses['loss_target_ce'], 2 * own)
    student, teacher = (net(images).transpose(0, 1).flatten(1) for net in (network, stp.model))
    both = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(student, teacher, strict=True)]
    torch.testing.assert_close(losses['loss_target'], 1 - torch.stack(both).mean())


def test_every_block_is_run():
    headings = re.findall(r'^## (.*)$', PAGE.read_text(), re.MULTILINE)
    assert headings == ['An operator', 'A module', 'A task']
    before_the_first = PAGE.read_text().partition('\n## ')[0]
    assert '```python' not in before_the_first


def test_names_of_the_page_exist():
    """What its tables offer to handlers."""
    from mmstp.analysis.ids import ChannelIds
    from mmstp.analysis.walk import Walk

    text = PAGE.read_text()
    ids, walk = re.findall(
        r'\n\| [^\n]*`walk\.(?:ids\.)?` \| \|\n\| --- \| --- \|\n((?:\|.*\n)+)', text
    )
    for owner, rows in ((ChannelIds, ids), (Walk, walk)):
        cells = ''.join(row.split(' | ')[0] for row in rows.splitlines())
        offered = re.findall(r'`(\w+)', cells)
        assert offered
        for name in offered:
            assert hasattr(owner, name), name
    found = re.findall(r'`(mmstp\.analysis\.\w+)\.(\w+)', text)
    assert found
    for module, name in found:
        assert hasattr(importlib.import_module(module), name)
