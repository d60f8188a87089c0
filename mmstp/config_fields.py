"""Options that come from a config: unknown names are refused before they are lost."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from .errors import FieldError


def refuse_unknown(where: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    """Raises a `FieldError` for the first option of a field (``'model.space'``) that is unknown."""
    accepted = sorted(accepted)
    for name in given:
        if name not in accepted:
            close = difflib.get_close_matches(name, accepted, n=1)
            hint = f'did you mean {close[0]!r}? ' if close else ''
            raise FieldError(
                f'{where} has no field {name!r}: {hint}accepted are {", ".join(accepted)}'
            )


def constructor_options(cls: type) -> set[str]:
    """The names that a class takes, with those that its ``**kwargs`` hand on to its bases."""
    names: set[str] = set()
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(vars(base)['__init__']).parameters.values()
        names.update(p.name for p in parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def default_of(cls: type, name: str) -> Any:
    """The default of an option of a class or its bases; None where there is none."""
    for base in cls.__mro__:
        parameters = inspect.signature(vars(base).get('__init__', object)).parameters
        if name in parameters:
            default = parameters[name].default
            return None if default is inspect.Parameter.empty else default
    return None


def options_of(function: Callable[..., Any], first: int = 0) -> list[str]:
    """The names of a function's parameters that have a default, after the first few."""
    parameters = list(inspect.signature(function).parameters.values())[first:]
    return [p.name for p in parameters if p.default is not inspect.Parameter.empty]


def positive(field: str, value: Any) -> int:
    """A whole number of at least 1; else a `ValueError` that names the field."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{field}={value!r}: expected a whole number, at least 1')
    return value
