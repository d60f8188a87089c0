"""Runs the benchmarks and puts what they print into the docs, between markers.

A marker is named after its script: ``<!-- begin cost_table -->`` ... ``<!-- end cost_table -->``.
Further options go to every script: ``python benchmarks/all.py --repeats 3``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / 'docs'
PAGES = {
    **dict.fromkeys(
        ('convert', 'cost_table', 'forward', 'step', 'latency', 'onnx_files'),
        DOCS / 'benchmarks.md',
    ),
    'demo_seeds': DOCS / 'results.md',
    'demo_detection_seeds': DOCS / 'results.md',
}


def insert(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the markers ``name``."""
    begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
    pattern = re.compile(re.escape(begin) + '.*?' + re.escape(end), re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise SystemExit(f'the page does not have {begin} and {end} once')
    return pattern.sub(lambda _: f'{begin}\n{text.strip()}\n{end}', page)


def main() -> int:
    """Returns 1 if a benchmark failed; its part of the page stays as it was."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--only', nargs='+', choices=PAGES, default=PAGES)
    args, options = parser.parse_known_args()
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        for name in args.only:
            out = Path(directory) / f'{name}.md'
            script = [sys.executable, '-W', 'ignore', str(HERE / f'{name}.py')]
            print(f'--- {name}', flush=True)
            if subprocess.run([*script, *options, '--out', str(out)]).returncode:
                failed.append(name)
            else:
                page = PAGES[name]
                page.write_text(insert(page.read_text(), name, out.read_text()))
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
