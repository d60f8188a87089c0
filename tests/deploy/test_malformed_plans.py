"""Plans with a value that does not belong there: one sentence with the file, the place, the value.

Nothing of what Python or PyTorch would say of it later.
"""

import copy
import json

import pytest

from mmstp import Architecture, CompactSpec
from mmstp.analysis.records import SizedCall
from mmstp.deploy.plan_file import PLAN, read_plan, write_plan
from mmstp.errors import CompactSpecError
from mmstp.subnets.compact_spec import StageShapes

SPEC = CompactSpec(
    {'a.weight': (2, 3)},
    {'a': ((SizedCall('reshape', (1, 4), (None, 2), (((1,), (1,)),)),), ())},
    {'b.d': {'tuple': [{'argument': ['x']}, {'value': True}]}},
    (StageShapes('b', (('b.c', 'b.d'),), 'a.weight', 0, ((0.5, 1), (1.0, 2))),),
)
CALL = ('calls', 'a', 0, 0)


@pytest.fixture
def path(tmp_path):
    write_plan(tmp_path / PLAN, Architecture((1,), (0.5,)), {'backbone': SPEC})
    return tmp_path / PLAN


def changed(content, place, value):
    """The content with another value at a place."""
    content = inside = copy.deepcopy(content)
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return content


def test_every_kind_of_value_is_read(path):
    assert read_plan(path, 'backbone') == SPEC


@pytest.mark.parametrize('value', [True, 2.0, '2', None, float('nan')])
def test_a_version_that_only_equals_one_is_another(value, path):
    path.write_text(json.dumps(changed(json.loads(path.read_text()), ['version'], value)))
    with pytest.raises(CompactSpecError, match=rf'plan\.json has version {value!r}, .* reads 2'):
        read_plan(path, 'backbone')


@pytest.mark.parametrize('value', [5, ['backbone'], 'backbone', None])
def test_parts_that_are_no_object(value, path):
    path.write_text(json.dumps({'version': 2, 'parts': value}))
    with pytest.raises(CompactSpecError, match=r'plan\.json: parts is .*; expected an object$'):
        read_plan(path, 'backbone')


@pytest.mark.parametrize('value', [5, None, [], {'shapes': {}}])
def test_a_part_without_the_fields_of_one(value, path):
    path.write_text(json.dumps({'version': 2, 'parts': {'backbone': value}}))
    with pytest.raises(CompactSpecError, match=r"plan\.json, part 'backbone': plan has the fi"):
        read_plan(path, 'backbone')


PLACES = [
    (('shapes',), [], 'an object'),
    (('shapes', 'a.weight'), 'ab', 'a list'),
    (('shapes', 'a.weight', 0), float('nan'), 'a whole number'),
    (('shapes', 'a.weight', 0), True, 'a whole number'),
    (('calls', 'a'), {}, 'a list'),
    (CALL, ['reshape', [1]], 'a list of 4'),
    ((*CALL, 0), 3, 'a string'),
    ((*CALL, 2, 1), '2', 'a whole number or null'),
    ((*CALL, 3, 0), [[1]], 'a list of 2'),
    (('skipped',), ['b.d'], 'an object'),
    (('skipped', 'b.d'), 'x', 'an object'),
    (('stages', 0), {'name': 'b'}, 'an object with name, chains, tensor, dim, widths'),
    (('stages', 0, 'chains', 0, 1), None, 'a string'),
    (('stages', 0, 'dim'), '0', 'a whole number'),
    (('stages', 0, 'widths', 0, 0), float('inf'), 'a number'),
]


@pytest.mark.parametrize('in_a_file', [True, False])
@pytest.mark.parametrize(('place', 'value', 'expected'), PLACES)
def test_a_value_that_does_not_belong_there(in_a_file, place, value, expected, path):
    content = json.loads(path.read_text())
    part = changed(content['parts']['backbone'], place, value)
    path.write_text(json.dumps(changed(content, ['parts', 'backbone'], part)))
    with pytest.raises(CompactSpecError) as error:
        read_plan(path if in_a_file else part, 'backbone')
    where = f"{path}, part 'backbone': plan" if in_a_file else 'plan'
    where += ''.join(f'[{key!r}]' for key in place)
    assert str(error.value) == f'{where} is {value!r}; expected {expected}'


def test_long_values_are_cut(path):
    part = changed(SPEC.to_dict(), ['shapes', 'a.weight'], 'a' * 1000)
    with pytest.raises(CompactSpecError) as error:
        read_plan(part, 'backbone')
    assert len(str(error.value)) < 150


@pytest.mark.parametrize('content', ['[' * 100_000, '\ufeff{}', '{"version": 2'])
def test_what_is_no_json(content, path):
    path.write_text(content, encoding='utf-8')
    with pytest.raises(CompactSpecError, match=r'plan\.json is no plan of a compact network'):
        read_plan(path, 'backbone')
