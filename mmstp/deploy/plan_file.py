"""``plan.json``: what is smaller in a compact network, beside its weights.

Configs name the file and one of its parts, so that they stay a page for people::

    {
      "version": 1,
      "mmstp_version": "0.1.0",
      "architecture": "((2, 3, 4, 2), (0.3, 0.3, 0.3, 0.7))",
      "parts": {"backbone": {"shapes": …, "calls": …, "skipped": …, "stages": …}, …}
    }
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..architecture import Architecture
from ..atomic_files import write_text
from ..errors import CompactSpecError
from ..subnets.compact_spec import CompactSpec
from ..version import __version__

PLAN = 'plan.json'
VERSION = 1


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
    """One part of a plan, which is a file or the part itself (`CompactSpec.to_dict`)."""
    if isinstance(plan, Mapping):
        return CompactSpec.from_dict(plan)
    if not isinstance(plan, (str, Path)):
        raise CompactSpecError(f'plan={plan!r}: expected the path of a {PLAN}, or a part of one')
    path = Path(plan)
    if not path.is_file():
        raise FileNotFoundError(
            f'plan={str(plan)!r} is not a file: {PLAN} lies beside the weights of an export'
        )
    try:
        content = json.loads(path.read_text())
        version, parts = content['version'], content['parts']
    except (ValueError, KeyError, TypeError) as error:
        raise CompactSpecError(
            f'{path} is no plan of a compact network, as tools/export.py writes it: '
            f'{type(error).__name__}: {error}'
        ) from error
    if version != VERSION:
        raise CompactSpecError(
            f'{path} has version {version!r}, this mmstp ({__version__}) reads {VERSION}: '
            'export the network anew'
        )
    if part not in parts:
        raise CompactSpecError(f'{path} has no part {part!r}; it has {", ".join(parts)}')
    return CompactSpec.from_dict(parts[part])


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
