"""Plots how a pool converged: ``plot_pool.py WORK_DIR --out pool.png``."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from mmstp.search.budgets import percent

METRICS = ('accuracy/top1', 'coco/bbox_mAP')  # the first that a run has


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


def plot_pool(work_dir: Path, out: Path, budget: str | None = None) -> None:
    """Pool size, its spread, the scores, and the accuracy of the main network and best subnet.

    The first three end with the search. Where the survivor is then trained alone, a line says so.

    Args:
        work_dir: Of an STP run.
        out: The picture's file.
        budget: Of several, the one that is shown: its label, or the fraction.

    Raises:
        ValueError: If the run has no such pool.
    """
    lines = read_scalars(work_dir)
    sizes = {name for line in lines for name in line if name.startswith('pool_size')}
    suffix = suffix_of(budget, sizes)
    lines = [_without(suffix, line) for line in lines]
    every = [line for line in lines if 'pool_size' in line]
    train = [line for line in every if 'loss_target' in line]  # the search
    metric = next((m for m in METRICS if any(f'subnet/{m}' in line for line in lines)), METRICS[0])
    val = [line for line in lines if f'subnet/{metric}' in line]
    per_epoch = max((t['step'] for t in every), default=1) / max(
        (t.get('epoch', 1) for t in every), default=1
    )
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 3.6), layout='constrained')
    figure.get_layout_engine().set(wspace=0.06)

    steps = [line['step'] for line in train]
    until = every[: len(train) + 1]  # with the one that is left
    at = [line['step'] for line in until]
    left.step(at, [line['pool_size'] for line in until], where='post', color='tab:blue')
    left.set(xlabel='iteration', title='The pool shrinks to one architecture')
    left.set_ylabel('architectures in the pool', color='tab:blue')
    left.set_ylim(bottom=0)
    spread = left.twinx()
    spread.step(at, [line['pool_spread'] for line in until], where='post', color='tab:red')
    spread.set_ylabel('spread of its architectures', color='tab:red')
    spread.set_ylim(bottom=0)

    scored = [line for line in train if 'best_score' in line]
    middle.plot(
        [line['step'] for line in scored], [line['best_score'] for line in scored],
        color='tab:blue', label="best architecture's score",
        marker='o' if len(scored) < 3 else None,
    )  # fmt: skip
    middle.plot(
        steps, [line['loss_target'] for line in train], color='0.6', lw=0.8, zorder=0,
        label='target loss, weighted',
    )  # fmt: skip
    middle.set(xlabel='iteration', ylabel='distillation loss', title='Scores')
    middle.legend(frameon=False)

    end = (steps or [line['step'] for line in every[:1]] or [0])[-1]
    if not steps:
        for axis in (left, middle):
            axis.text(0.5, 0.5, 'no search', ha='center', transform=axis.transAxes)
    curves = {
        'main network': [(v['step'] * per_epoch, v[metric]) for v in val],
        'best subnet': [(v['step'] * per_epoch, v[f'subnet/{metric}']) for v in val],
    }
    if len(train) < len(every):
        right.axvline(end, color='0.6', ls='--', lw=1, label='trained alone from here on')
        curves['main network'] = [p for p in curves['main network'] if p[0] <= end]
    for name, points in curves.items():
        if points:
            right.plot(*zip(*points, strict=True), 'o-', label=name)
    if val:
        right.legend(frameon=False, loc='lower right')
    right.set(xlabel='iteration', ylabel=metric, title='Validation')
    for axis in (left, middle, right):
        axis.spines['top'].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def suffix_of(budget: str | None, sizes: set[str]) -> str:
    """What the names of a budget's numbers end with.

    Args:
        budget: Its label, or a fraction.
        sizes: The names of the sizes of pools.

    Raises:
        ValueError: If the run has no such budget.
    """
    labels = sorted(name.removeprefix('pool_size').removeprefix('-') for name in sizes) or ['']
    wanted = budget or ''
    if wanted not in labels and re.fullmatch(r'0?\.\d+', wanted):
        wanted = percent(float(wanted))
    if wanted not in labels:
        given = f'--budget {budget}' if budget else '--budget is missing'
        accepted = f'one of {", ".join(labels)}' if all(labels) else 'none: the run has one budget'
        raise ValueError(f'{given}: expected {accepted}')
    return f'-{wanted}' if wanted else ''


def _without(suffix: str, line: dict[str, Any]) -> dict[str, Any]:
    """A line with the numbers of one budget under the names that they have where it is the only."""
    own = {}
    for name, value in line.items():
        first, slash, rest = name.partition('/')
        if suffix and first.endswith(suffix):
            own[first.removesuffix(suffix) + slash + rest] = value
    return {**line, **own}


def main() -> None:
    """Reads the folder and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('--out', type=Path, default=Path('pool.png'))
    parser.add_argument('--budget', help='of a run with several, one of them: 15, or 0.15')
    args = parser.parse_args()
    plot_pool(args.work_dir, args.out, args.budget)


if __name__ == '__main__':
    main()
