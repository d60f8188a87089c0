"""``plan.json``: what is smaller in a compact network, beside its weights.

Configs name the file and one of its parts, so that they stay a page for people::

    {
      "version": 2,
      "mmstp_version": "0.1.0",
      "architecture": "((2, 3, 4, 2), (0.3, 0.3, 0.3, 0.7))",
      "parts": {"backbone": {"shapes": …, "calls": …, "skipped": …, "stages": …}, …}
    }
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..architecture import Architecture
from ..atomic_files import write_text
from ..errors import CompactSpecError
from ..subnets.compact_spec import CompactSpec
from ..version import __version__

PLAN = 'plan.json'
VERSION = 2

# What a part holds, as `CompactSpec.to_dict` writes it: {name: form}, where `str` is any name;
# [form] for any number of values, (form, …) for one of each; else a type.
_CALL = (str, [int], [int | None], [([int], [int])])
_STAGE = {
    'name': str, 'chains': [[str]], 'tensor': str, 'dim': int, 'widths': [(float | int, int)],
}  # fmt: skip
_PART = {
    'shapes': {str: [int]}, 'calls': {str: [[_CALL]]}, 'skipped': {str: {str: object}},
    'stages': [_STAGE],
}  # fmt: skip
_EXPECTED = {
    int: 'a whole number', int | None: 'a whole number or null', float | int: 'a number',
    str: 'a string',
}  # fmt: skip


def write_plan(path: Path, architecture: Architecture, parts: Mapping[str, CompactSpec]) -> None:
    """Writes the parts of a compact network (``'backbone'``, ``'head'``, …), one line a tensor."""
    content = {
        'version': VERSION,
        'mmstp_version': __version__,
        'architecture': str(architecture),
        'parts': {name: spec.to_dict() for name, spec in parts.items()},
    }
    write_text(path, _text(content) + '\n')


def read_plan(plan: str | Path | Mapping[str, Any], part: str) -> CompactSpec:
    """One part of a plan, which is a file or the part itself (`CompactSpec.to_dict`).

    Raises:
        FileNotFoundError: If there is no such file.
        CompactSpecError: If it is no plan, or a value in it is not what belongs there.
    """
    if isinstance(plan, Mapping):
        return _spec(plan)
    if not isinstance(plan, (str, Path)):
        raise CompactSpecError(f'plan={plan!r}: expected the path of a {PLAN}, or a part of one')
    path = Path(plan)
    if not path.is_file():
        raise FileNotFoundError(
            f'plan={str(plan)!r} is not a file: {PLAN} lies beside the weights of an export'
        )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        version, parts = content['version'], content['parts']
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CompactSpecError(
            f'{path} is no plan of a compact network, as tools/export.py writes it: '
            f'{type(error).__name__}: {error}'
        ) from error
    if type(version) is not int or version != VERSION:  # True and 1.0 equal 1
        raise CompactSpecError(
            f'{path} has version {version!r}, this mmstp ({__version__}) reads {VERSION}: '
            'export the network anew'
        )
    _check(parts, {str: object}, f'{path}: parts')
    if part not in parts:
        raise CompactSpecError(f'{path} has no part {part!r}; it has {", ".join(parts)}')
    try:
        return _spec(parts[part])
    except CompactSpecError as error:
        raise CompactSpecError(f'{path}, part {part!r}: {error}') from error


def _spec(part: Any) -> CompactSpec:
    """`CompactSpec.from_dict` of values that are what belongs there."""
    if isinstance(part, Mapping) and part.keys() == _PART.keys():  # else `from_dict` names fields
        _check(part, _PART, 'plan')
    return CompactSpec.from_dict(part)


def _check(value: Any, form: Any, place: str) -> None:
    """A `CompactSpecError` where a value, or one inside it, has another form."""
    if isinstance(form, dict):
        expected = 'an object' if str in form else f'an object with {", ".join(form)}'
        if isinstance(value, Mapping) and (str in form or value.keys() == form.keys()):
            for name, inner in value.items():
                _check(inner, form.get(name, form.get(str)), f'{place}[{name!r}]')
            return
    elif isinstance(form, (list, tuple)):
        expected = 'a list' if isinstance(form, list) else f'a list of {len(form)}'
        if isinstance(value, (list, tuple)) and (isinstance(form, list) or len(value) == len(form)):
            for index, inner in enumerate(value):
                _check(inner, form[index % len(form)], f'{place}[{index}]')
            return
    else:
        expected = _EXPECTED.get(form, '')
        odd = isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))
        if form is object or (isinstance(value, form) and not odd):
            return
    raise CompactSpecError(f'{place} is {value!r:.80}; expected {expected}')


def _text(value: Any, indent: int = 0, depth: int = 4) -> str:
    """JSON in which objects are spread over lines down to a depth, and lists are not."""
    if not isinstance(value, dict) or not value or not depth:
        return json.dumps(value)
    pad = ' ' * (indent + 2)
    lines = [
        f'{pad}{json.dumps(key)}: {_text(inner, indent + 2, depth - 1)}'
        for key, inner in value.items()
    ]
    return '{\n' + ',\n'.join(lines) + '\n' + ' ' * indent + '}'
