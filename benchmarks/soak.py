"""Runs that are killed at random and started again, against the same runs left alone.

Each round trains a small network on the digits twice with the same seed: once as it is, and once
killed at random times (SIGKILL or SIGTERM to all its processes) and started again by the same
command until it ends. Then weights, optimizer, schedules and the pool have to be equal to the bit.
Checkpoints are written in the background or not, workers persist or not, by the round::

    python benchmarks/soak.py --minutes 60 --seed 0
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = """
    model.model.backbone.depth=18 model.model.head.in_channels=128 model.target=0.4
    model.tolerance=0.1 model.pool.size=8 custom_hooks.0.end=0.5 custom_hooks.0.interval=4
    custom_hooks.1.num_images=64 train_dataloader.num_workers=2 train_dataloader.batch_size=32
    train_dataloader.dataset.indices=512 val_dataloader.dataset.indices=64
    optim_wrapper.accumulative_counts=2 train_cfg.max_epochs=3 param_scheduler.end=3
    param_scheduler.T_max=3 default_hooks.checkpoint.by_epoch=False
    default_hooks.checkpoint.interval=3
""".split()


def command(work_dir: Path, seed: int) -> list[str]:
    """What is run again and again."""
    return [
        sys.executable, '-W', 'ignore', str(ROOT / 'tools/train.py'),
        str(ROOT / 'configs/stp/digits.py'), '--work-dir', str(work_dir), '--resume', 'auto',
        '--cfg-options', *OPTIONS, f'randomness.seed={seed}', f'model.pool.seed={seed}',
        f'default_hooks.checkpoint.background={bool(seed % 2)}',
        f'train_dataloader.persistent_workers={bool(seed // 2 % 2)}',
    ]  # fmt: skip


def start(work_dir: Path, seed: int) -> subprocess.Popen[bytes]:
    """A run in a process group of its own; what it says goes to a file."""
    with Path(f'{work_dir}.log').open('ab') as log:
        return subprocess.Popen(
            command(work_dir, seed), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )


def said(work_dir: Path) -> str:
    """The end of what the runs in a folder have said."""
    return Path(f'{work_dir}.log').read_text()[-6000:]


def killed_until_done(work_dir: Path, seed: int, longest: float) -> Counter[str]:
    """Runs it to its end; how often it was ended by what."""
    draws, ended = random.Random(seed), Counter[str]()
    while True:
        run = start(work_dir, seed)
        number = draws.choice([signal.SIGKILL, signal.SIGTERM])
        try:
            code = run.wait(draws.uniform(0.3, 0.9) * longest)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, number)
            code = run.wait(300)
        if code == 0:
            return ended
        if code not in (-number, 75):  # a SIGTERM while Python loads the packages is the default's
            raise SystemExit(f'a run ended with {code}:\n{said(work_dir)}')
        ended['left' if code == 75 else number.name] += 1


def last(work_dir: Path) -> dict[str, Any]:
    """The last checkpoint."""
    name = (work_dir / 'last_checkpoint').read_text()
    content: dict[str, Any] = torch.load(name, weights_only=False)
    return content


def equal(a: Any, b: Any) -> bool:
    """Tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def main() -> None:
    """Rounds until the time is over; the first that differs is an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    until, seed = time.monotonic() + 60 * args.minutes, args.seed
    while time.monotonic() < until:
        with tempfile.TemporaryDirectory() as folder:
            whole, killed = Path(folder) / 'whole', Path(folder) / 'killed'
            began = time.monotonic()
            if start(whole, seed).wait():
                raise SystemExit(said(whole))
            ended = killed_until_done(killed, seed, time.monotonic() - began)
            a, b = last(whole), last(killed)
            parts = ['state_dict', 'optimizer', 'param_schedulers', 'mmstp']
            different = [part for part in parts if not equal(a[part], b[part])]
            print(f'seed {seed}: {dict(ended)}, different: {different or "nothing"}', flush=True)
            if different:
                raise SystemExit(1)
        seed += 1


if __name__ == '__main__':
    main()
