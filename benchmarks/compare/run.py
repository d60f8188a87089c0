"""Runs methods side by side: the same data, network, budget and allowance of training.

``python benchmarks/compare/run.py --suite headline --minutes 60`` runs what is not in ``rows/``
yet, pauses at the end of an epoch when the time is up (or on Ctrl-C), and goes on from there the
next time. Every run that ends adds a line to ``rows/DATA.jsonl``, of which ``report.py`` makes
tables and plots.
On a CPU each run has one thread, so there can be as many at once as there are cores. Slim networks
keep a GPU from working: there, many runs at once with ``--device cuda --timed-on cpu`` have the
epochs that they would have on a core.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import given  # noqa: E402, F401  register their methods
import libraries  # noqa: E402, F401
import rivals  # noqa: E402, F401
import torch  # noqa: E402
from measure import ROOT  # noqa: E402
from methods import METHODS, OPTIONS  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.utils import get_git_hash  # noqa: E402
from setting import (  # noqa: E402
    COMPARE,
    HERE,
    ROWS,
    Setting,
    append_row,
    grid,
    options_in,
    read_rows,
    setting_of,
)
from suites import SUITES  # noqa: E402
from training import PausedError, Trial, WaitingError, device_name  # noqa: E402

import mmstp  # noqa: E402
from mmstp.datasets.check import check_dataset, check_datasets  # noqa: E402
from mmstp.subnets.cut import count_macs, count_parameters  # noqa: E402


def work(setting: Setting, args: argparse.Namespace, stop: Event, sender: Connection) -> None:
    """In a process of its own: sends a run's row, or why there is none."""
    for name in (signal.SIGINT, signal.SIGTERM):  # which may go to all: the parent's business
        signal.signal(name, signal.SIG_IGN)
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    try:
        sender.send(row_of(setting, args, stop))
    except PausedError:
        sender.send('paused')
    except WaitingError as error:
        sender.send(error)
    except Exception as error:
        traceback.print_exc()
        sender.send(f'FAILED: {type(error).__name__}: {error}')


def row_of(setting: Setting, args: argparse.Namespace, stop: Event) -> dict[str, Any]:
    """Runs a method; the columns of its row beside the setting."""
    trial = Trial(
        setting,
        Path(args.work_dir),
        args.device,
        args.timed_on,
        stop.is_set,
        rows_of(args),
    )
    found = METHODS[setting.method, setting.variant](trial, setting.variant)
    if unread := setting.options.keys() - trial.read:
        raise ValueError(f'{setting.method}:{setting.variant} has no option {min(unread)}')
    network = found.network
    example = (torch.zeros(1, *trial.data.input_shape, device=args.device),)
    dense = trial.dense().eval()
    return {
        'top1': trial.top1(network),
        'validation_top1': trial.top1(network, 'validation') if trial.has_validation else None,
        'macs_ratio': round(count_macs(network, example) / count_macs(dense, example), 4),
        'params_ratio': round(count_parameters(network) / count_parameters(dense), 4),
        'architecture': str(found.architecture) if found.architecture else None,
        **found.more,
        'seconds': round(trial.seconds, 1),
        'steps': trial.steps,
        'epochs': trial.epochs,
        'device': device_name(args.device),
        'torch': torch.__version__,
        'mmstp': mmstp.__version__,
        'commit': args.commit,
    }


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Those of this device, with which alone its runs are compared."""
    own = device_name(args.device)
    return [row for row in read_rows(args.rows) if row['device'] == own]


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """What is asked for, each seed's methods together."""
    names = [tuple(name.partition(':')[::2]) for name in args.methods or []]
    for method, preset in names:
        if (method, preset.partition('@')[0]) not in METHODS:
            known = ', '.join(':'.join(name) for name in METHODS)
            raise SystemExit(f'--methods: {method}:{preset} is none of {known}')
        try:
            unknown = options_in(preset).keys() - OPTIONS.keys()
        except ValueError as error:
            raise SystemExit(f'--methods: {method}:{preset}: {error}') from None
        if unknown:
            accepted = ', '.join(OPTIONS)
            raise SystemExit(f'--methods: {method}:{preset}: {min(unknown)} is none of {accepted}')
    for folder, chosen in (('data', args.data), ('networks', args.networks)):
        known = sorted(path.stem for path in (HERE / folder).glob('*.py'))
        if unknown := set(chosen or ()).difference(known):
            raise SystemExit(f'--{folder}: {min(unknown)} is none of {", ".join(known)}')
    asked = {
        'data': args.data,
        'network': args.networks,
        'budget': args.budgets,
        'length': args.lengths,
        'compare': args.compare,
    }
    found = []
    for part in SUITES[args.suite]:
        axes = {name: value or part[name] for name, value in asked.items()}
        found += grid(names or part['methods'], seed=args.seeds or part['seed'], **axes)
    return list(dict.fromkeys(found))


def positive_number(text: str) -> float:
    """A finite number above 0."""
    number = float(text)
    return _accepted(number, 0 < number < math.inf, 'a finite number above 0')


def fraction(text: str) -> float:
    """A number above 0, at most 1."""
    number = float(text)
    return _accepted(number, 0 < number <= 1, 'a number above 0, at most 1')


def whole_number(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    return _accepted(number, number >= 1, 'a whole number of at least 1')


def _accepted(number: Any, fits: bool, expected: str) -> Any:
    if not fits:
        raise argparse.ArgumentTypeError(f'{number:g}: expected {expected}')
    return number


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--suite', choices=SUITES, default='headline', help='default %(default)s')
    add('--methods', nargs='+', metavar='METHOD:PRESET', help='instead of the suite’s')
    add('--data', nargs='+', help='names in data/, instead of those of each part of the suite')
    add('--networks', nargs='+', help='names in networks/, likewise; so for the other axes')
    add('--budgets', nargs='+', type=fraction)
    add('--lengths', nargs='+', type=positive_number, help='of the training, in multiples of T')
    add('--compare', nargs='+', choices=COMPARE)
    add('--seeds', nargs='+', type=int)
    add('--device', default='cpu')
    add(
        '--timed-on',
        help='where it is measured what a step costs, for equal time; the device by default',
    )
    add('--processes', type=whole_number, default=1, help='runs at once')
    add('--minutes', type=positive_number, help='after which all pause')
    add('--work-dir', default=str(ROOT / 'work_dirs/compare'))
    add('--rows', type=Path, default=ROWS, help='the folder of the rows')
    add('--list', action='store_true', help='only say what would be run')
    args = parser.parse_args(arguments)
    args.commit = get_git_hash(digits=10)
    return args


def main() -> int:
    """Returns 1 if a run failed."""
    args = parse()
    done = {setting_of(row) for row in rows_of(args)}
    wanted = settings_of(args)
    left = [setting for setting in wanted if setting not in done]
    print(f'{len(wanted)} runs, {len(wanted) - len(left)} of them done', flush=True)
    if args.list:
        print('\n'.join(setting.key for setting in left))
        return 0
    for data in dict.fromkeys(setting.data for setting in left):
        config = Config.fromfile(HERE / 'data' / f'{data}.py')
        try:
            check_datasets(config)
            check_dataset(config.get('validation_dataset'), 'validation_dataset')
        except FileNotFoundError as error:
            raise SystemExit(f'--data: {data}: {error}') from None
    return int(run_all(left, args))


def run_all(left: Sequence[Setting], args: argparse.Namespace) -> bool:
    """Runs settings, so many at once, each in a process of its own; whether one failed."""
    # where there is a GPU: a forked process cannot use CUDA, and the runner would take it unasked
    context = multiprocessing.get_context('spawn' if torch.cuda.is_available() else 'fork')
    if args.device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    stop, start = context.Event(), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    waiting, running, failed, rows = list(left), [], False, 0
    stuck: set[Setting] = set()  # those that wait for others, since the last row
    while waiting or running:
        while waiting and len(running) < args.processes and not stop.is_set():
            setting = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(setting, args, stop, sender))
            process.start()
            sender.close()  # so that the end of the process is the end of the pipe
            running.append((setting, rows, process, receiver))
        try:
            multiprocessing.connection.wait([receiver for *_, receiver in running], timeout=1)
        except KeyboardInterrupt:
            print('pausing at the end of the epoch', flush=True)
            stop.set()
        if args.minutes and time.monotonic() - start > 60 * args.minutes:
            stop.set()
        for one in [one for one in running if one[-1].poll()]:
            running.remove(one)
            setting, rows_then, process, receiver = one
            try:
                found = receiver.recv()
            except EOFError:
                process.join()
                found = f'FAILED: its process ended with exit code {process.exitcode}'
            process.join()
            if isinstance(found, WaitingError):
                stuck.add(setting)
                others = {*waiting, *(other for other, *_ in running)}
                if others - stuck or rows > rows_then:
                    waiting.append(setting)  # behind those that it may wait for
                    continue
                found = f'FAILED: {found}'
            if isinstance(found, dict):
                if setting not in map(setting_of, rows_of(args)):  # another call may have run it
                    append_row(setting, found, args.rows)
                rows += 1
                stuck.clear()
                found = f'{found["top1"]:.2f} at {found["macs_ratio"]:.1%} of the MACs'
            failed |= str(found).startswith('FAILED')
            clock, count = time.strftime('%H:%M:%S'), len(waiting) + len(running)
            print(f'{clock} {count:4d} left | {setting.key}: {found}', flush=True)
        if stop.is_set() and not running:
            print(f'{len(waiting)} not begun')
            break
    return failed


if __name__ == '__main__':
    sys.exit(main())
