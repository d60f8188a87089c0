"""Options that come from a config: unknown names are refused before they are lost."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .errors import FieldError, OptionError


def refuse_unknown(where: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    """Raises a `FieldError` for the first option of a field (``'model.space'``) that is unknown."""
    accepted = sorted(accepted)
    for name in given:
        if name not in accepted:
            raise FieldError(f'{where} has no field {name!r}: {suggestion(name, accepted)}')


def suggestion(name: str, accepted: Sequence[str]) -> str:
    """What may have been meant by an unknown name, and what is accepted."""
    close = difflib.get_close_matches(name, accepted, n=1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return f'{hint}accepted are {", ".join(accepted)}'


def _constructors(cls: type) -> Iterator[Mapping[str, inspect.Parameter]]:
    """The parameters of a class's own ``__init__`` and of its bases', in the order of the MRO."""
    inits = (vars(base).get('__init__') for base in cls.__mro__)
    return (inspect.signature(init).parameters for init in inits if init is not None)


def constructor_options(cls: type) -> set[str]:
    """The names that a class takes, with those that its ``**kwargs`` hand on to its bases."""
    names: set[str] = set()
    for parameters in _constructors(cls):
        names.update(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def default_of(cls: type, name: str) -> Any:
    """The default of an option of a class or its bases; None where there is none."""
    defaults = (own[name].default for own in _constructors(cls) if name in own)
    found = next(defaults, None)
    return None if found is inspect.Parameter.empty else found


def options_of(function: Callable[..., Any], first: int = 0) -> list[str]:
    """The names of a function's parameters that have a default, after the first few."""
    parameters = list(inspect.signature(function).parameters.values())[first:]
    return [p.name for p in parameters if p.default is not inspect.Parameter.empty]


def positive(field: str, value: Any) -> int:
    """A whole number of at least 1; else an `OptionError` that names the field."""
    return at_least(1, field, value)


def at_least(least: int, field: str, value: Any) -> int:
    """A whole number that is not below another; else an `OptionError` that names the field."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f'{field}={value!r}: expected a whole number, at least {least}')
    return value
