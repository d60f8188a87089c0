"""Plots how a pool converged: ``plot_pool.py WORK_DIR --out pool.png``."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt


def read_scalars(work_dir: Path) -> list[dict[str, Any]]:
    """The lines that LocalVisBackend wrote, those of a resumed run behind those of the first.

    Raises:
        FileNotFoundError: If the folder holds none.
    """
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(
            f'{work_dir} holds no */vis_data/scalars.json; expected the work dir of an STP run '
            'with the visualizer backend LocalVisBackend'
        )
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def plot_pool(work_dir: Path, out: Path) -> None:
    """Pool size, its spread, the scores, and the accuracy of the main network and best subnet.

    Args:
        work_dir: Of an STP run.
        out: The picture's file.
    """
    lines = read_scalars(work_dir)
    train = [line for line in lines if 'pool_size' in line]
    val = [line for line in lines if 'subnet/accuracy/top1' in line]
    per_epoch = max((t['step'] for t in train), default=1) / max(
        (t.get('epoch', 1) for t in train), default=1
    )
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 3.6), layout='constrained')
    figure.get_layout_engine().set(wspace=0.06)

    steps = [line['step'] for line in train]
    left.step(steps, [line['pool_size'] for line in train], where='post', color='tab:blue')
    left.set(xlabel='iteration', title='The pool shrinks to one architecture')
    left.set_ylabel('architectures in the pool', color='tab:blue')
    left.set_ylim(bottom=0)
    spread = left.twinx()
    spread.step(steps, [line['pool_spread'] for line in train], where='post', color='tab:red')
    spread.set_ylabel('spread of its architectures', color='tab:red')
    spread.set_ylim(bottom=0)

    scored = [line for line in train if 'best_score' in line]
    middle.plot(
        [line['step'] for line in scored], [line['best_score'] for line in scored],
        color='tab:blue', label="best architecture's score",
    )  # fmt: skip
    middle.plot(
        steps, [line['loss_target'] for line in train], color='0.6', lw=0.8, zorder=0,
        label='target loss, weighted',
    )  # fmt: skip
    middle.set(xlabel='iteration', ylabel='distillation loss', title='Scores')
    middle.legend(frameon=False)

    if val:
        at = [line['step'] * per_epoch for line in val]
        right.plot(at, [line['accuracy/top1'] for line in val], 'o-', label='main network')
        right.plot(at, [line['subnet/accuracy/top1'] for line in val], 'o-', label='best subnet')
        right.legend(frameon=False, loc='lower right')
    right.set(xlabel='iteration', ylabel='top-1 (%)', title='Accuracy')
    for axis in (left, middle, right):
        axis.spines['top'].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    """Reads the folder and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('--out', type=Path, default=Path('pool.png'))
    args = parser.parse_args()
    plot_pool(args.work_dir, args.out)


if __name__ == '__main__':
    main()
