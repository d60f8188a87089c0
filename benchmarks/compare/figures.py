"""The paper's figures, remade from runs of the harness.

2: accuracy before and after pruning, by sparsification. 4 and 7: the magnitudes of the kept and the
dropped weights, beside those of ordinary training. 6: how good and how different the architectures
of the pool are over the training. All but 2 need the weights of runs: these are begun or continued
where they are missing, and read where they are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from measure import ROOT, table
from methods import PRESETS, PoolHistory, dense_network, option, search
from report import all_but, grouped, mean_and_error, named, written
from setting import Setting
from suites import SPARSIFICATIONS
from tables import found_rows
from torch import Tensor, nn
from training import Trial

from mmstp import Architecture
from mmstp.atomic_files import write_json
from mmstp.stp.hooks.pool_log import spread

DOCS = ROOT / 'docs'
PICTURE = 'paper_fig{}.png'
# those with a pool that shrinks, and a main network that is trained to the end
SEARCHED = [
    preset
    for preset, options in PRESETS.items()
    if not {'preset', 'survivor', 'size', 'pool'} & {*options}
]
LOOKUP = 50  # what is added to a seed for the run of a look-up table


def trial_of(args: argparse.Namespace, method: str, preset: str) -> Trial:
    """A run of the harness, with its folder."""
    setting = Setting(
        method, preset, args.data, args.network, args.budget, args.length, args.compare, args.seed
    )
    start = time.monotonic()
    return Trial(
        setting,
        Path(args.work_dir),
        stop=lambda: bool(args.minutes) and time.monotonic() - start > 60 * args.minutes,
    )


def at_its_rate(args: argparse.Namespace, method: str, preset: str) -> Trial:
    """A run at the learning rate of STP's rows, so that magnitudes can be compared."""
    rate = option(trial_of(args, 'stp', args.preset), 'lr')
    return trial_of(args, method, f'{preset}@lr={rate:g}')


def figure_2(args: argparse.Namespace) -> str:
    """Before (bp) and after (ap) pruning, without fine-tuning, from the rows.

    By L1, L2 and stimulative training, each of the uniform architecture.
    """
    wanted = set(SPARSIFICATIONS)
    rows = [row for row in found_rows(args, all_but('budget')) if named(row) in wanted]
    if not rows:
        return ''
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    lines = []
    for index, ((method, preset), own) in enumerate(grouped(rows, 'method', 'preset').items()):
        budgets = grouped(own, 'budget')
        before, after = (
            [mean_and_error([row[column] for row in of]) for of in budgets.values()]
            for column in ('main_top1', 'top1')
        )
        lines += [
            (f'{method}: {preset}', f'{budget:.0%}', len(of), written(*first), written(*last))
            for ((budget,), of), first, last in zip(budgets.items(), before, after, strict=True)
        ]
        for points, name, dash in ((before, 'before', '--'), (after, 'after', '-')):
            y, errors = zip(*points, strict=True)
            axes.errorbar(
                [100 * budget for (budget,) in budgets], y, [error or 0 for error in errors],
                marker='o', linestyle=dash, color=f'C{index}',
                label=f'{method}: {preset}, {name} pruning',
            )  # fmt: skip
    axes.set(xlabel='multiply-adds left, %', ylabel='top-1, %', title='Fig. 2: sparsification')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(args, figure, '2')
    return table(('method', 'MACs left', 'seeds', 'before pruning, %', 'after, %'), lines)


def magnitudes(network: nn.Module, kept: dict[str, Tensor]) -> list[tuple[str, float, float]]:
    """The mean magnitudes of the kept and the dropped weights of convolutions that have both."""
    found = []
    for name, weight in network.named_parameters():
        mask = kept[name]
        if weight.dim() == 4 and mask.any() and not mask.all():
            size = weight.detach().abs()
            found.append((name, float(size[mask].mean()), float(size[~mask].mean())))
    return found


def figure_7(args: argparse.Namespace) -> str:
    """Kept and dropped weights of STP's main network, and the same entries in ordinary training."""
    run = trial_of(args, 'stp', args.preset)
    stp = search(run, **PRESETS[args.preset], hooks=[PoolHistory()])
    kept = stp.supernet.kept(stp.pool.best)
    own = magnitudes(stp.model, kept)
    base = magnitudes(dense_network(at_its_rate(args, 'dense', 'plain')), kept)
    figure, axes = plt.subplots(figsize=(9, 4.2), layout='constrained')
    x = range(len(own))
    for label, found, style in (('STP', own, '-'), ('ordinary training', base, '--')):
        axes.plot(x, [k for _, k, _ in found], f'o{style}', color='C0', label=f'{label}: kept')
        axes.plot(x, [d for _, _, d in found], f'o{style}', color='C1', label=f'{label}: dropped')
    axes.set_xticks(list(x), [name.removeprefix('backbone.').removesuffix('.weight')
                              for name, _, _ in own], rotation=90, fontsize=7)  # fmt: skip
    axes.set(ylabel='mean magnitude', title='Fig. 7: weights of the main network')
    axes.grid(alpha=0.3)
    axes.legend()
    save(args, figure, '7')

    def compared(of: list[float], to: list[float]) -> str:
        ratios = np.divide(of, to)
        return f'{np.median(ratios):.2f} (above 1 in {(ratios > 1).sum()} of {len(ratios)} layers)'

    (kept_own, dropped_own), (kept_base, dropped_base) = (
        ([k for _, k, _ in found], [d for _, _, d in found]) for found in (own, base)
    )
    rows = [
        ('kept over dropped', compared(kept_own, dropped_own)),
        ('the same entries in ordinary training', compared(kept_base, dropped_base)),
        ('kept over the same in ordinary training', compared(kept_own, kept_base)),
        ('dropped over the same in ordinary training', compared(dropped_own, dropped_base)),
    ]
    return table(('', f'{stp.pool.best}'), rows)


def figure_4(args: argparse.Namespace) -> str:
    """Two layers in ordinary training, and in stimulative training of one subnet from the start.

    The subnet has all blocks and one width everywhere, 0.3 or 0.7. Every picture is relative to its
    own largest magnitude; what lies in the box is kept.
    """
    plain = dense_network(at_its_rate(args, 'dense', 'plain'))
    shown: list[tuple[str, nn.Module, dict[str, Tensor]]] = [('ordinary training', plain, {})]
    for width in (0.3, 0.7):
        run = at_its_rate(args, 'figures', f'st-{width}')
        run.network.space.update(depths=False, widths=(width, 1.0))
        supernet = run.supernet(run.dense())
        smallest = supernet.describe(supernet.space.smallest)
        run.setting = replace(run.setting, budget=smallest['macs_ratio'])
        stp = search(run, end=1.0, beta2=0.0, size=1)
        shown.append((f'ST, width {width}', stp.model, stp.supernet.kept(stp.pool.best)))
    names = narrowed_both_ways(shown[1][2])
    figure, axes = plt.subplots(len(names), 3, figsize=(9, 6), layout='constrained', squeeze=False)
    rows = []
    for line, name in zip(axes, names, strict=True):
        masks = {title: kept[name].flatten(2).any(2) for title, _, kept in shown[1:]}
        for axis, (title, network, _) in zip(line, shown, strict=True):
            size = network.get_parameter(name).detach().abs().mean((2, 3))
            axis.imshow(size / size.max(), cmap='RdBu_r', vmin=0, vmax=1, aspect='auto')
            axis.set_title(f'{title}\n{name.removeprefix("backbone.")}', fontsize=8)
            axis.set(xlabel='input channel', ylabel='output channel')
            if title in masks:
                high, wide = (int(masks[title].any(dim).sum()) for dim in (1, 0))
                box = plt.Rectangle((-0.5, -0.5), wide, high, fill=False, linewidth=2)
                axis.add_patch(box)
            # of the boxes of both, in every training
            ratios = [f'{float(size[m].mean() / size[~m].mean()):.2f}' for m in masks.values()]
            rows.append((name, title, f'{float(size.mean()):.4f}', *ratios))
    save(args, figure, '4')
    boxes = [f'inside over outside the box of {title[-3:]}' for title, _, _ in shown[1:]]
    return table(('layer', 'training', 'mean magnitude', *boxes), rows)


def narrowed_both_ways(kept: dict[str, Tensor]) -> list[str]:
    """Two kernels of which a subnet drops inputs and outputs: in the middle, and the last."""
    names = [
        name
        for name, mask in kept.items()
        if mask.dim() == 4 and not mask.flatten(1).any(1).all() and not mask.any(0).all()
    ]
    return [names[len(names) // 2], names[-1]]


def figure_6(args: argparse.Namespace) -> str:
    """The pool over the training: mean accuracy by a look-up table, and how far it is spread.

    The table holds every architecture of the first pool, with the weights of a run of another seed
    that trains all of them evenly until its end, without support subnets, as in Section 4.4. The
    spread is over the blocks and widths of the stages; the paper's is over those of layers.
    """
    history = PoolHistory()
    run = trial_of(args, 'stp', args.preset)
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
    save(args, figure, '6')
    values = np.array(list(looked.values()))
    rank = float((values < looked[pools[-1][0]]).mean())
    rows = [
        ('architectures at first', len(pools[0])),
        ('mean top-1 at first', f'{accuracy[0]:.2f} (standard deviation {values.std():.2f}, '
            f'median {np.median(values):.2f}, lowest {values.min():.2f})'),
        ('top-1 of the last one by look-up', f'{accuracy[-1]:.2f} (above {rank:.0%} of the pool)'),
        ('spread at first, half-way, before the last', ', '.join(
            f'{spread_of[i]:.3f}' for i in (0, len(steps) // 2, max(0, len(steps) - 2)))),
    ]  # fmt: skip
    return table(('', 'value'), rows)


def lookup(args: argparse.Namespace, pool: list[str]) -> dict[str, float]:
    """The accuracy of every architecture of the first pool; a file keeps what was measured."""
    run = at_its_rate(args, 'figures', f'{args.preset}-lookup')
    run.setting = replace(run.setting, seed=args.seed + LOOKUP)
    path = run.folder / 'lookup.json'
    if path.exists():
        found: dict[str, float] = json.loads(path.read_text())
        return found
    # a pool that shrinks at the very end
    options = {**PRESETS[args.preset], 'end': 1.0, 'beta2': 0.0}
    stp = search(run, **options, pool=pool, interval=10**9)
    looked = {}
    for text in pool:
        network = run.calibrated(stp.supernet.export(Architecture.parse(text)))
        looked[text] = run.top1(network)
    write_json(path, looked)
    return looked


def save(args: argparse.Namespace, figure: Any, number: str) -> None:
    """As a picture of the docs, or beside the weights where nothing is written there."""
    path = (Path(args.work_dir) if args.print else DOCS / 'images') / PICTURE.format(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


FIGURES: dict[str, Callable[[argparse.Namespace], str]] = {
    '2': figure_2,
    '4': figure_4,
    '6': figure_6,
    '7': figure_7,
}
