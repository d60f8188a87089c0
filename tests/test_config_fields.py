"""Options of configs: unknown names are named, with the nearest that exist."""

import pytest

from mmstp.config_fields import constructor_options, default_of, options_of, refuse_unknown
from mmstp.errors import FieldError


def test_known_names_pass():
    refuse_unknown('model', [], [])
    refuse_unknown('model', ['a', 'b'], ('b', 'a', 'c'))


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (['widths', 'widhts'], "model.space has no field 'widhts': did you mean 'widths'? "),
        (['zzz'], "model.space has no field 'zzz': accepted"),
    ],
)
def test_first_unknown_name_is_refused(given, message):
    with pytest.raises(FieldError) as error:
        refuse_unknown('model.space', given, ['widths', 'depths'])
    assert str(error.value).startswith(message)
    assert str(error.value).endswith('accepted are depths, widths')
    assert isinstance(error.value, TypeError)  # as Python's own for an unexpected argument


def test_options_are_the_parameters_with_a_default():
    def function(a, b, c=1, *args, d=2, e, **kwargs):
        pass

    assert options_of(function) == ['c', 'd']
    assert options_of(function, first=3) == ['d']


class Class:
    def __init__(self, graph, widths=(), stem=False):
        pass


def test_options_of_a_class_are_those_of_its_init():
    assert options_of(Class) == ['widths', 'stem']


class Base:
    def __init__(self, width, depth=3, *, norm=None):
        pass


class Derived(Base):
    def __init__(self, extra=1, **kwargs):
        super().__init__(**kwargs)


def test_options_of_constructors():
    assert {'extra', 'width', 'depth', 'norm'} <= constructor_options(Derived)
    assert constructor_options(Base) == {'self', 'width', 'depth', 'norm'}
    assert default_of(Derived, 'depth') == 3
    assert default_of(Derived, 'width') is None
    assert default_of(Derived, 'other') is None
