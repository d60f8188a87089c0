"""Runs the benchmarks and puts what they print into the docs, between markers.

A marker is named after its script: ``<!-- begin cost_table -->`` ... ``<!-- end cost_table -->``.
Further options go to every script: ``python benchmarks/all.py --repeats 3``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import ROOT
from pages import insert

HERE, DOCS = ROOT / 'benchmarks', ROOT / 'docs'
PAGES = {
    **dict.fromkeys(
        ('convert', 'cost_table', 'forward', 'step', 'gpu', 'latency', 'onnx_files'),
        DOCS / 'benchmarks.md',
    ),
    'demo_seeds': DOCS / 'results.md',
    'demo_detection_seeds': DOCS / 'results.md',
}


def main() -> int:
    """Returns 1 if a benchmark failed; its part of the page stays as it was."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name in PAGES if name != 'gpu' or torch.cuda.is_available()]
    parser.add_argument('--only', nargs='+', choices=PAGES, default=usual)
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
