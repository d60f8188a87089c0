"""The paper's figures, remade from runs of the harness: ``paper.py 6 --data fashion_6k_14``.

2: accuracy before and after pruning, by sparsification. 4 and 7: the magnitudes of the kept and the
dropped weights of every layer, beside those of ordinary training. 6: how good and how different the
architectures of the pool are over the training. Each needs the runs that it names; they are begun
or continued where they are missing (``--minutes`` as in ``run.py``), and read where they are there.
Writes ``docs/images/paper_fig*.png``, and the numbers behind them into ``docs/paper.md``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import matplotlib  # noqa: E402

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure import ROOT, table  # noqa: E402
from methods import OPTIONS, PRESETS, TUNED, PoolHistory, dense_network, search  # noqa: E402
from pages import insert  # noqa: E402
from report import grouped, mean_and_error, written  # noqa: E402
from setting import COMPARE, ROWS, Setting, read_rows  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from training import PausedError, Trial  # noqa: E402

from mmstp import Architecture  # noqa: E402
from mmstp.atomic_files import write_json  # noqa: E402
from mmstp.stp.hooks.pool import spread  # noqa: E402

DOCS = ROOT / 'docs'


def trial_of(args: argparse.Namespace, method: str, preset: str) -> Trial:
    """A run of the harness, with its folder."""
    # at the learning rate that STP's rows have, so that ordinary training's is comparable
    lr = TUNED.get(('stp', args.preset), OPTIONS)['lr']
    preset = f'{preset}@lr={lr:g}' if method == 'figures' else preset
    setting = Setting(
        method, preset, args.data, args.network, args.budget, args.length, args.compare, args.seed
    )
    start = time.monotonic()
    return Trial(
        setting,
        Path(args.work_dir),
        stop=lambda: bool(args.minutes) and time.monotonic() - start > 60 * args.minutes,
    )


def figure_2(args: argparse.Namespace) -> str:
    """Before (bp) and after (ap) pruning, without fine-tuning, from the rows."""
    wanted = {('sparsified', 'l1'), ('sparsified', 'l2'), ('stp', 'paper'), ('stp', 'short')}
    rows = [
        row
        for row in read_rows(args.rows)
        if (row['method'], row['preset']) in wanted
        and (row['data'], row['network']) == (args.data, args.network)
        and (row['length'], row['compare']) == (args.length, args.compare)
    ]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    lines = []
    for index, ((method, preset), own) in enumerate(grouped(rows, 'method', 'preset').items()):
        budgets = grouped(own, 'budget')
        for column, name, dash in (('main_top1', 'before', '--'), ('top1', 'after', '-')):
            points = [
                (budget, *mean_and_error([row[column] for row in of]))
                for (budget,), of in budgets.items()
            ]
            x, y, errors = zip(*points, strict=True)
            axes.errorbar(
                [100 * budget for budget in x], y, [error or 0 for error in errors], marker='o',
                linestyle=dash, color=f'C{index}', label=f'{method}: {preset}, {name} pruning',
            )  # fmt: skip
            lines += [
                (f'{method}: {preset}', f'{budget:.0%}', name, written(mean, error))
                for budget, mean, error in points
            ]
    axes.set(xlabel='multiply-adds left, %', ylabel='top-1, %', title='Fig. 2: sparsification')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, 'paper_fig2')
    return table(('method', 'budget', 'pruning', 'top-1, %'), sorted(lines))


def magnitudes(network: nn.Module, kept: dict[str, Tensor]) -> list[tuple[str, float, float]]:
    """The mean magnitude of the kept and of the dropped weights, by layer, where there are both."""
    found = []
    for name, weight in network.named_parameters():
        mask = kept[name]
        if weight.dim() > 1 and mask.any() and not mask.all():
            size = weight.detach().abs()
            found.append((name, float(size[mask].mean()), float(size[~mask].mean())))
    return found


def figure_7(args: argparse.Namespace) -> str:
    """Kept and dropped weights of STP's main network, and the same entries in ordinary training."""
    run = trial_of(args, 'figures', args.preset)
    history = PoolHistory()  # figure 6 reads the same run
    stp = search(run, **PRESETS[args.preset], hooks=[history])
    kept = stp.supernet.kept(stp.pool.best)
    plain = dict(dense_network(trial_of(args, 'dense', 'plain')).named_parameters())
    own = magnitudes(stp.model, kept)
    base = [float(plain[name].detach().abs().mean()) for name, _, _ in own]
    figure, axes = plt.subplots(figsize=(9, 4.2), layout='constrained')
    x = range(len(own))
    axes.plot(x, [k for _, k, _ in own], 'o-', label='kept')
    axes.plot(x, [d for _, _, d in own], 'o-', label='dropped')
    axes.plot(x, base, 'o--', color='gray', label='ordinary training')
    axes.set_xticks(list(x), [name.removeprefix('backbone.').removesuffix('.weight')
                              for name, _, _ in own], rotation=90, fontsize=7)  # fmt: skip
    axes.set(ylabel='mean magnitude', title='Fig. 7: weights of the main network')
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, 'paper_fig7')
    share = np.mean([k > d for _, k, d in own])
    rows = [
        ('layers where the kept weights are larger than the dropped', f'{share:.0%} of {len(own)}'),
        ('kept over dropped, median', f'{np.median([k / d for _, k, d in own]):.2f}'),
        ('kept over ordinary training, median',
         f'{np.median([k / b for (_, k, _), b in zip(own, base, strict=True)]):.2f}'),
        ('dropped over ordinary training, median',
         f'{np.median([d / b for (_, _, d), b in zip(own, base, strict=True)]):.2f}'),
    ]  # fmt: skip
    return table(('', f'{stp.pool.best}'), rows)


def figure_6(args: argparse.Namespace) -> str:
    """The pool over the training: mean accuracy by a look-up table, and how far it is spread.

    The table holds every architecture of the first pool, with the weights of a run that trains all
    of them evenly until its end, as in Section 4.4.
    """
    history = PoolHistory()
    run = trial_of(args, 'figures', args.preset)
    largest = search(run, **PRESETS[args.preset], hooks=[history]).supernet.space.largest
    looked = lookup(args, history.entries[0])
    steps = list(history.entries)
    pools = list(history.entries.values())
    accuracy = [np.mean([looked[architecture] for architecture in pool]) for pool in pools]
    spread_of = [spread(map(Architecture.parse, pool), largest) for pool in pools]
    figure, left = plt.subplots(figsize=(7, 4.2), layout='constrained')
    left.step(steps, accuracy, where='post', color='C0')
    left.set(xlabel='iteration', title='Fig. 6: the architectures of the pool')
    left.set_ylabel('mean top-1 by look-up, %', color='C0')
    right = left.twinx()
    right.step(steps, spread_of, where='post', color='C3')
    right.set_ylabel('mean squared distance to their centre', color='C3')
    save(figure, 'paper_fig6')
    values = np.array(list(looked.values()))
    rank = float((values < looked[pools[-1][0]]).mean())
    rows = [
        ('architectures at first', len(pools[0])),
        ('mean top-1 at first', f'{accuracy[0]:.2f} (standard deviation {values.std():.2f})'),
        ('top-1 of the last one by look-up', f'{accuracy[-1]:.2f} (above {rank:.0%} of the pool)'),
        ('spread at first, half-way, before the last', ', '.join(
            f'{spread_of[i]:.3f}' for i in (0, len(steps) // 2, max(0, len(steps) - 2)))),
    ]  # fmt: skip
    return table(('', 'value'), rows)


def lookup(args: argparse.Namespace, pool: list[str]) -> dict[str, float]:
    """The accuracy of every architecture of the first pool; a file keeps what was measured."""
    run = trial_of(args, 'figures', f'{args.preset}-lookup')
    path = run.folder / 'lookup.json'
    if path.exists():
        found: dict[str, float] = json.loads(path.read_text())
        return found
    # a pool of the same size, seed and draws that shrinks at the very end: all are trained evenly
    stp = search(run, **{**PRESETS[args.preset], 'end': 1.0}, size=len(pool), interval=10**9)
    looked = {}
    for text in pool:
        network = run.calibrated(stp.supernet.export(Architecture.parse(text)))
        looked[text] = run.top1(network)
    write_json(path, looked)
    return looked


def save(figure: Any, name: str) -> None:
    """As a picture of the docs."""
    figure.savefig(DOCS / 'images' / f'{name}.png', dpi=110)
    plt.close(figure)


FIGURES = {'2': figure_2, '6': figure_6, '7': figure_7}


def main() -> int:
    """Returns 1 if a run was paused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('figure', choices=FIGURES)
    add('--data', default='fashion_6k_14')
    add('--network', default='r18_slim')
    add('--budget', type=float, default=0.15)
    add('--length', type=float, default=1.0)
    add('--compare', choices=COMPARE, default='epochs', help='default %(default)s, the paper’s')
    add('--preset', choices=PRESETS, default='paper')
    add('--seed', type=int, default=0)
    add('--minutes', type=float)
    add('--work-dir', default=str(ROOT / 'work_dirs/compare'))
    add('--rows', type=Path, default=ROWS)
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    try:
        text = FIGURES[args.figure](args)
    except PausedError:
        print('paused; the same command goes on')
        return 1
    name = f'figure_{args.figure}'
    text = (
        f'{args.data}, {args.network}, {args.budget:.0%} of the MACs, preset {args.preset}, '
        f'{args.length:g} T, equal {args.compare}, seed {args.seed}.\n\n{text}\n\n'
        f'![Figure {args.figure}](images/paper_fig{args.figure}.png)'
    )
    print(text)
    page = DOCS / 'paper.md'
    page.write_text(insert(page.read_text(), name, text))
    return 0


if __name__ == '__main__':
    sys.exit(main())
