"""Converts the networks of several libraries, and tells what can be pruned in each.

``python tools/analysis_tools/coverage.py --source torchvision --only 'resnet*'``: nothing is
declared and nothing downloaded. Every network has a process of its own and two minutes. The lists
of networks are in ``coverage_models.py``.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import hashlib
import json
import os
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from coverage_measure import SECONDS, measure
from coverage_models import BESIDE, SOURCES, networks
from coverage_network import Network
from coverage_report import earlier, failed, losses, report, shortcomings
from pages import environment, insert

import mmstp

Found = dict[str, Any]


def select(known: Sequence[Network], patterns: Sequence[str]) -> list[Network]:
    """The networks whose ``source/family/name`` holds one of the patterns, in any case.

    Raises:
        LookupError: If a pattern is in none; it lists near names.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        glob = f'*{pattern.lower()}*'
        paths = {n.path for n in known if fnmatch.fnmatchcase(n.path.lower(), glob)}
        if not paths:
            words = {w for n in known for w in (n.family, n.name, n.name.rpartition('/')[2]) if w}
            by_lower = {word.lower(): word for word in words}
            near = difflib.get_close_matches(pattern.lower(), by_lower, n=5, cutoff=0.5)
            hint = f'; near names: {", ".join(by_lower[word] for word in near)}' if near else ''
            raise LookupError(f'--only {pattern!r} matches none of {len(known)} networks{hint}')
        chosen |= paths
    return [network for network in known if network.path in chosen]


class Notes:
    """What was found, on file as soon as it is: a run that was interrupted goes on behind it.

    Args:
        path: A file with a line for each network, begun where there is none; None for no file.
            Lines that were written by another mmstp do not count.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._code = path, _fingerprint()
        self._found: dict[str, Found] = {}
        for line in path.read_text().splitlines() if path and path.exists() else ():
            try:
                note = json.loads(line)
            except ValueError:  # the run ended while it was written
                continue
            if note['code'] == self._code:
                self._found[note['network']] = note['found']

    def get(self, network: Network) -> Found | None:
        """What was found about a network, if anything."""
        return self._found.get(network.path)

    def add(self, network: Network, found: Found) -> None:
        """Writes it down."""
        if self._path:
            note = {'network': network.path, 'code': self._code, 'found': found}
            with self._path.open('a') as file:
                file.write(f'{json.dumps(note)}\n')


def _fingerprint() -> str:
    """Of the code of mmstp."""
    root = Path(mmstp.__file__).parent
    code = b''.join(path.read_bytes() for path in sorted(root.rglob('*.py')))
    return hashlib.sha256(code).hexdigest()[:16]


def main() -> int:
    """Returns 1 if a network failed."""
    args, parser = _arguments()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    known: dict[str, list[Network]] = {}
    for source in args.source or SOURCES:
        try:
            known[source] = networks(source)
        except Exception as error:  # mmpretrain beside an unknown transformers: TypeError
            message = f'{source} cannot be imported ({error}); pip install {source}'
            if args.source:
                parser.error(message)
            _say(f'{message}, or name others with --source; its networks are left out')
    everything = [network for found in known.values() for network in found]
    try:
        chosen = select(everything, args.only) if args.only else everything
    except LookupError as error:
        parser.error(str(error))
    _warm_up()
    notes, results = Notes(args.notes), []
    page = args.out.read_text() if args.out else ''
    lines = earlier(args.compare.read_text() if args.compare else page)
    for number, network in enumerate(chosen, 1):
        start = time.monotonic()
        found = notes.get(network)
        if found is None:
            found = measure(network, args.seconds)
            notes.add(network, found)
        if not network.excluded:
            missed = '; '.join(shortcomings(found)) or 'good'
            spent = time.monotonic() - start
            _say(f'{number}/{len(chosen)} {network.path}: {missed} [{spent:.0f} s]')
            if lost := '; '.join(losses(network, found, lines)):
                _say(f'    less than before: {lost}')
            _say(textwrap.indent(found.get('log', ''), '    '), end='')
        results.append((network, found))
    for source in known:
        if part := [pair for pair in results if pair[0].source == source]:
            text = f'{environment(source, *BESIDE.get(source, ()))}\n\n{report(part)}'
            print(f'## {source}\n\n{text}\n', flush=True)
            page = insert(page, source, text) if args.out else page
    if args.out:
        args.out.write_text(page)
    return int(any(failed(found) for _, found in results))


def _arguments() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only', action='append', metavar='NAME',
        help='part of a name or a glob, such as resnet50 or torchvision/vgg/*bn; repeatable',
    )  # fmt: skip
    parser.add_argument('--source', action='append', choices=SOURCES, help='a library; repeatable')
    parser.add_argument('--seconds', type=float, default=SECONDS, help='for each (%(default)s)')
    parser.add_argument(
        '--notes', type=Path,
        help='a file to which every network adds a line; networks that it has are not run again',
    )  # fmt: skip
    parser.add_argument(
        '--compare', type=Path, metavar='PAGE',
        help='a page, such as docs/coverage.md: says which networks have less than there',
    )  # fmt: skip
    parser.add_argument(
        '--out', type=Path, metavar='PAGE',
        help='a page, such as docs/coverage.md, whose tables between markers are rewritten',
    )  # fmt: skip
    args = parser.parse_args()
    if args.out and args.only:
        parser.error('--out rewrites the tables of whole libraries: leave out --only')
    for option in ('out', 'compare'):
        page = getattr(args, option)
        if page and not page.is_file():
            parser.error(
                f'--{option} {str(page)!r} is not a file; docs/coverage.md has the markers'
            )
    return args, parser


def _warm_up() -> None:
    """Imports what torch imports at its first export, so that no network is charged with it."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    mmstp.Supernet(model, torch.zeros(1, 3, 4, 4), stem=True)


def _say(text: str, end: str = '\n') -> None:
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == '__main__':
    # so that a run that is stopped takes along the process of its network
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
