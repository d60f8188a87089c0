"""What the benchmarks share: interleaved timing, demos over seeds, tables, the line of versions.

Machines are noisy and differ from each other, so what is reported are ratios within one run: the
competitors take turns (A B A B ...), a ratio is formed in every round, and its median is given with
its quartiles.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools' / 'analysis_tools'))

from pages import environment, table  # noqa: E402

__all__ = ['environment', 'table']


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument('--repeats', type=int, default=repeats, help='rounds (default %(default)s)')
    found.add_argument('--threads', type=int, default=1, help='of the CPU (default %(default)s)')
    found.add_argument('--seed', type=int, default=0)
    found.add_argument('--out', type=Path, help='also write the Markdown to this file')
    return found


def prepare(args: argparse.Namespace) -> None:
    """Applies the common options; foreign warnings would stand between the lines of a table."""
    warnings.filterwarnings('ignore')
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)


def demo_summaries(demo: str, args: argparse.Namespace, *options: str) -> list[dict[str, Any]]:
    """What a demo of ``tools/`` finds, with its baselines, in ``repeats`` rounds of a seed each."""
    summaries = []
    for seed in range(args.seed, args.seed + args.repeats):
        with tempfile.TemporaryDirectory() as work_dir:
            command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / demo), '--baselines',
                       '--seed', str(seed), '--work-dir', work_dir, *options]  # fmt: skip
            subprocess.run(command, check=True)
            summaries.append(json.loads((Path(work_dir) / 'summary.json').read_text()))
    return summaries


def interleave(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function in each of ``repeats`` rounds; every round calls each one once."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    enabled = gc.isenabled()
    try:
        for turn in range(warmup + repeats):
            gc.collect()
            gc.disable()
            for name, function in functions.items():
                _synchronize()
                start = time.perf_counter()
                function()
                _synchronize()
                if turn >= warmup:
                    seconds[name].append(time.perf_counter() - start)
            if enabled:
                gc.enable()
    finally:
        if enabled:
            gc.enable()
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """``a / b``, round by round."""
    return [x / y for x, y in zip(a, b, strict=True)]


def spread(values: Sequence[float], form: str = '.2f', unit: str = '') -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method='inclusive') if len(values) > 1 else [*values] * 3
    )
    return f'{middle:{form}}{unit} ({low:{form}}–{high:{form}})'


def milliseconds(seconds: Sequence[float]) -> list[float]:
    """For `spread`."""
    return [1000 * value for value in seconds]


def report(args: argparse.Namespace, *paragraphs: str) -> None:
    """Prints the Markdown and writes it to ``--out``."""
    text = '\n\n'.join(paragraphs) + '\n'
    print(text, flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
