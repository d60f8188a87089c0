"""What pages of measurements are made of: tables, the line of versions, places between markers."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch


def insert(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the markers ``name``."""
    begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
    pattern = re.compile(re.escape(begin) + '.*?' + re.escape(end), re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise SystemExit(f'the page does not have {begin} and {end} once')
    return pattern.sub(lambda _: f'{begin}\n{text.strip()}\n{end}', page)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def environment(*packages: str) -> str:
    """The line that says what was measured with what, and when."""
    names = ['torch', 'mmstp', *packages]
    load = f', load average {os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else ''
    device = f', {torch.cuda.get_device_name()}' if torch.cuda.is_initialized() else ''
    return (
        ', '.join(f'{name} {_version(name)}' for name in names)
        + f'; {torch.get_num_threads()} of {os.cpu_count()} processor threads '
        + f'({torch.backends.cpu.get_cpu_capability()}){device}{load}; {datetime.date.today()}'
    )


def _version(name: str) -> str:
    if name == 'mmstp':
        import mmstp

        return mmstp.__version__
    for distribution in (name, f'onedl-{name}'):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return '(no version)'
