"""Runs methods side by side: the same data, network, budget and allowance of training.

``python benchmarks/compare/run.py --suite headline --minutes 60`` runs what is not in ``rows/``
yet, pauses at the end of an epoch when the time is up (or on Ctrl-C), and goes on from there the
next time. Every run that ends adds a line to ``rows/DATA.jsonl``, of which ``report.py`` makes
tables and plots.
On a CPU each run has one thread, so there can be as many at once as there are cores.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import AsyncResult
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import rivals  # noqa: E402, F401  registers its methods
import torch  # noqa: E402
from measure import ROOT  # noqa: E402
from methods import METHODS  # noqa: E402
from mmengine.utils import get_git_hash  # noqa: E402
from setting import COMPARE, ROWS, Setting, append_row, grid, read_rows, setting_of  # noqa: E402
from suites import SUITES  # noqa: E402
from training import PausedError, Trial, WaitingError  # noqa: E402

import mmstp  # noqa: E402
from mmstp.subnets.cut import count_macs, count_parameters  # noqa: E402

_stop: Event


def share_stop(stop: Event) -> None:
    """In every worker: Ctrl-C is the parent's business."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(
    setting: Setting, args: argparse.Namespace
) -> tuple[Setting, dict[str, Any] | WaitingError | str]:
    """A run's row, or why there is none yet."""
    if _stop.is_set():
        return setting, 'not begun'
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    work = Path(args.work_dir)
    trial = Trial(
        setting,
        work / setting.key,
        work / setting.data / setting.network / 'common',
        args.device,
        _stop.is_set,
        read_rows(args.rows),
    )
    try:
        found = METHODS[setting.method, setting.variant](trial, setting.variant)
    except PausedError:
        return setting, 'paused'
    except WaitingError as error:
        return setting, error
    network, more = found.network, found.more or {}
    example = (torch.zeros(1, *trial.data.input_shape, device=args.device),)
    dense = trial.dense().eval()
    return setting, {
        'top1': trial.top1(network),
        'validation_top1': trial.top1(network, 'validation') if trial.has_validation else None,
        'macs_ratio': round(count_macs(network, example) / count_macs(dense, example), 4),
        'params_ratio': round(count_parameters(network) / count_parameters(dense), 4),
        'architecture': str(found.architecture) if found.architecture else None,
        **more,
        'seconds': round(trial.seconds, 1),
        'steps': trial.steps,
        'epochs': trial.epochs,
        'device': torch.cuda.get_device_name() if args.device != 'cpu' else platform.machine(),
        'torch': torch.__version__,
        'mmstp': mmstp.__version__,
        'commit': args.commit,
    }


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """What is asked for, each seed's methods together."""
    names = [tuple(name.partition(':')[::2]) for name in args.methods or []]
    for method, preset in names:
        if (method, preset.partition('@')[0]) not in METHODS:
            known = ', '.join(':'.join(name) for name in METHODS)
            raise SystemExit(f'--methods: {method}:{preset} is none of {known}')
    given = {
        'data': args.data,
        'network': args.networks,
        'budget': args.budgets,
        'length': args.lengths,
        'compare': args.compare,
    }
    found = []
    for part in SUITES[args.suite]:
        axes = {name: value or part[name] for name, value in given.items()}
        found += grid(names or part['methods'], seed=args.seeds or part['seed'], **axes)
    return list(dict.fromkeys(found))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--suite', choices=SUITES, default='headline', help='default %(default)s')
    add('--methods', nargs='+', metavar='METHOD:PRESET', help='instead of the suite’s')
    add('--data', nargs='+', help='files of data/, instead of the suite’s')
    add('--networks', nargs='+', help='files of networks/, likewise')
    add('--budgets', nargs='+', type=float)
    add('--lengths', nargs='+', type=float, help='of the training, in multiples of T')
    add('--compare', nargs='+', choices=COMPARE)
    add('--seeds', nargs='+', type=int)
    add('--device', default='cpu')
    add('--processes', type=int, default=1, help='runs at once')
    add('--minutes', type=float, help='after which all pause')
    add('--work-dir', default=str(ROOT / 'work_dirs/compare'))
    add('--rows', type=Path, default=ROWS, help='the folder of the rows')
    add('--list', action='store_true', help='only say what would be run')
    args = parser.parse_args(arguments)
    args.commit = get_git_hash(digits=10)
    return args


def main() -> int:
    """Returns 1 if a run failed."""
    args = parse()
    warnings.filterwarnings('ignore')
    done = {setting_of(row) for row in read_rows(args.rows)}
    wanted = settings_of(args)
    left = [setting for setting in wanted if setting not in done]
    print(f'{len(wanted)} runs, {len(wanted) - len(left)} of them done', flush=True)
    if args.list:
        print('\n'.join(setting.key for setting in left))
        return 0
    # a forked process cannot use CUDA; it starts quicker
    context = multiprocessing.get_context('fork' if args.device == 'cpu' else 'spawn')
    stop, start, rows, failed = context.Event(), time.monotonic(), 0, 0
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # a process for each run: what one leaves behind is not the next one's
    with context.Pool(args.processes, share_stop, (stop,), maxtasksperchild=1) as pool:

        def begin(setting: Setting) -> tuple[Setting, int, AsyncResult[Any]]:
            return setting, rows, pool.apply_async(partial(run, setting, args))

        running = [begin(setting) for setting in left]
        while running:
            try:
                time.sleep(0.2)
            except KeyboardInterrupt:
                print('pausing at the end of the epoch', flush=True)
                stop.set()
            if args.minutes and time.monotonic() - start > 60 * args.minutes:
                stop.set()
            for one in [one for one in running if one[-1].ready()]:
                running.remove(one)
                setting, rows_then, result = one
                try:
                    _, found = result.get()
                except Exception as error:
                    failed += 1
                    found = f'FAILED: {type(error).__name__}: {error}'
                if isinstance(found, WaitingError) and (running or rows > rows_then):
                    running.append(begin(setting))  # behind those that it may wait for
                    continue
                if isinstance(found, dict):
                    append_row(setting, found, args.rows)
                    rows += 1
                    found = f'{found["top1"]:.2f} at {found["macs_ratio"]:.1%} of the MACs'
                clock = time.strftime('%H:%M:%S')
                print(f'{clock} {len(running):4d} left | {setting.key}: {found}', flush=True)
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
