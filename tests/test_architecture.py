"""Architectures as plain values."""

import ast
import copy
import itertools
import json
import pickle

import pytest

from mmstp import Architecture, ArchitectureError

PAPER = '((2, 3, 4, 2), (0.3, 0.3, 0.3, 0.7))'  # Table 8


@pytest.mark.parametrize('text', [PAPER, '((1,), (1.0,))', '((), ())', '((1, 12), (1.0, 0.25))'])
def test_parse_and_print_are_inverse(text):
    architecture = Architecture.parse(text)
    assert str(architecture) == text
    assert Architecture.parse(str(architecture)) == architecture
    assert (architecture.depths, architecture.widths) == ast.literal_eval(text)


def test_one_value_in_every_form():
    value = Architecture((2, 3), (0.5, 1.0))
    nested = [[2, 3], [0.5, 1]]
    forms = [nested, ((2, 3), (0.5, 1.0)), '((2, 3), (0.5, 1))', '[[2,3],[0.5,1.0]]', value]
    assert {Architecture.of(form) for form in forms} == {value}
    assert Architecture.of(json.loads(json.dumps(nested))) == value
    assert str(Architecture.of(nested)) == str(value)  # 1 prints as 1.0
    assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value


def test_value_cannot_be_changed():
    with pytest.raises(AttributeError):
        Architecture((1,), (1.0,)).depths = (2,)


def test_contains_is_the_partial_order_of_all_parts():
    every = [
        Architecture(depths, widths)
        for depths in itertools.product((1, 2), repeat=2)
        for widths in itertools.product((0.3, 1.0), repeat=2)
    ]
    for one, other in itertools.product(every, repeat=2):
        pairs = zip(one.depths + one.widths, other.depths + other.widths, strict=True)
        assert one.contains(other) == all(a >= b for a, b in pairs)
        assert (one.contains(other) and other.contains(one)) == (one == other)
        both = [a for a in every if a.contains(one) and a.contains(other)]
        assert one.joined(other) in both
        assert all(a.contains(one.joined(other)) for a in both)


def test_other_stages_are_not_contained():
    assert not Architecture((2, 2), (1.0, 1.0)).contains(Architecture((1,), (1.0,)))
    assert not Architecture((2,), (1.0,)).contains(Architecture((1, 1), (1.0, 1.0)))


@pytest.mark.parametrize(
    'value',
    [
        'ResNet-50', '((2, 3), (0.3, 0.7)', '(2, 3)', '((1,), (1.0,), ())', '((1,), "a")', '', None,
        [[1], ['0.5']], [[1], [True]], {'depths': (1,)}, 3, [[1], [None]],
    ],
)  # fmt: skip
def test_other_forms_are_refused_with_an_example(value):
    with pytest.raises(ArchitectureError, match=r'does not parse: expected .* such as') as error:
        Architecture.of(value)
    assert str(value).replace('"', "'") in str(error.value)
    example = str(error.value).rpartition('such as ')[2].strip('"')
    assert str(Architecture.parse(example)) == example


@pytest.mark.parametrize(
    ('depths', 'widths', 'message'),
    [
        ((1, 2), (1.0,), r'2 depths and 1 widths; an architecture has one of each per stage'),
        ((0,), (1.0,), r'depth 0 is not a whole number above 0'),
        ((1.5,), (1.0,), r'depth 1\.5 is not'),
        ((True,), (1.0,), r'depth True is not'),
        (('1',), (1.0,), r"depth '1' is not"),
        ((1,), (0.0,), r'width 0\.0 is not a fraction in \(0, 1\]'),
        ((1,), (1.1,), r'width 1\.1 is not'),
        ((1,), (float('nan'),), r'width nan is not'),
        ((1,), ('0.5',), r"width '0\.5' is not"),
    ],
)
def test_values_out_of_range(depths, widths, message):
    with pytest.raises(ArchitectureError, match=message):
        Architecture(depths, widths)


@pytest.mark.parametrize('text', ['(' * 10_000, '"((1,), (1.0,))"', '\0', 'f()', '-' * 5000])
def test_texts_that_python_cannot_read(text):
    with pytest.raises(ArchitectureError, match='does not parse') as error:
        Architecture.of(text)
    assert len(str(error.value)) < 500


def test_whole_numbers_out_of_range():
    with pytest.raises(ArchitectureError, match='is not a fraction'):
        Architecture.of([[1], [10**400]])
