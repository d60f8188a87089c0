"""The file with what is smaller in a compact network: as written, and everything else refused."""

import json

import pytest

from mmstp import Architecture, CompactSpec
from mmstp.analysis.records import SizedCall
from mmstp.deploy.plan_file import PLAN, read_plan, write_plan
from mmstp.errors import CompactSpecError

SPEC = CompactSpec(
    {'a.weight': (2, 3), 'b.c.bias': (2,)},
    {'a': ((SizedCall('reshape', (1, 4), (None, 2), (((1,), (1,)),)),), ())},
    {'b.d': {'argument': ['x']}},
)


@pytest.fixture
def path(tmp_path):
    write_plan(tmp_path / PLAN, Architecture((1, 2), (0.3, 1.0)), {'backbone': SPEC})
    return tmp_path / PLAN


def test_what_is_written_is_read(path):
    assert read_plan(path, 'backbone') == read_plan(str(path), 'backbone') == SPEC
    assert read_plan(SPEC.to_dict(), 'whatever') == SPEC


def test_a_tensor_a_line(path):
    lines = path.read_text().splitlines()
    assert '        "a.weight": [2, 3],' in lines
    assert '  "architecture": "((1, 2), (0.3, 1.0))",' in lines


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere.plan\.json.*beside the weights'):
        read_plan(tmp_path / 'nowhere' / PLAN, 'backbone')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', r'plan\.json is no plan of a compact network'),
        ('[]', r'plan\.json is no plan of a compact network'),
        ('{"shapes": {}}', r'plan\.json is no plan of a compact network.*version'),
        ('{"version": 1, "parts": {}}', r'plan\.json has version 1, .* reads 2: export .* anew'),
        (
            '{"version": 2, "parts": {"head": {}}}',
            r"has no part 'backbone'; it has head",
        ),
        ('{"version": 2, "parts": {"backbone": {}}}', r'plan has the fields \[\]; expected shapes'),
    ],
)
def test_other_files_are_refused(content, message, path):
    path.write_text(content)
    with pytest.raises(CompactSpecError, match=message):
        read_plan(path, 'backbone')


def test_a_plan_of_an_earlier_version_is_refused_with_what_to_do():
    """One that stood in the config itself, with the attributes that follow from the shapes."""
    earlier = {**SPEC.to_dict(), 'sizes': {'a': {'in_features': 3}}}
    with pytest.raises(CompactSpecError, match=r'an export of an earlier version: export it anew'):
        read_plan(json.loads(json.dumps(earlier)), 'backbone')


def test_a_whole_plan_in_place_of_a_part_is_refused(path):
    with pytest.raises(CompactSpecError, match=r'a whole plan\.json; .* parts \(backbone\)'):
        read_plan(json.loads(path.read_text()), 'backbone')
    with pytest.raises(CompactSpecError, match=r'plan=None: expected the path of a plan\.json'):
        read_plan(None, 'backbone')
