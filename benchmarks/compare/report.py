"""Tables and plots of the comparison, from its rows alone.

``python benchmarks/compare/report.py`` rewrites the tables between the markers of
``docs/compare.md`` and the pictures beside it. Differences are paired: they are taken seed by seed
between a method and the reference, and given with their standard error. One below two standard
errors is called none; with fewer than three seeds nothing is said.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import matplotlib  # noqa: E402

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from measure import ROOT, table  # noqa: E402
from pages import insert  # noqa: E402
from scipy import stats  # noqa: E402
from setting import IN_ONE_RUN, ROWS, read_rows, setting_of  # noqa: E402

DOCS = ROOT / 'docs'
REFERENCES = (('scratch', 'uniform'), ('given', 'magnitude'))  # the first that was run
FEWEST = 3  # seeds, for a difference to be called one
ONE_RUN = {**IN_ONE_RUN, 'afterwards': 'short'}  # for all budgets, and what a run for each is
TRIALS = 100  # from this seed on, rows are for decisions, by their validation accuracy
Row = dict[str, Any]
Name = tuple[str, str]
SETTING = ('data', 'network', 'budget', 'length')
BY = (*SETTING, 'compare', 'device')
# what is advised and what one would do otherwise: from random weights, from a trained network
IN_SHORT: Sequence[tuple[Name, Name]] = [
    (('stp', preset), other)
    for preset in ('recommended', 'long')
    for other in (('scratch', 'uniform'), ('magnitude', 'l2-finetuned'))
]
IN_SHORT_GIVEN: Sequence[tuple[Name, Name]] = [
    (('given', f'pretrained{own}'), ('given', f'{name}{others}'))
    for own, others in (('', '-untaught'), ('', ''), ('-taught', ''))
    for name in ('magnitude', 'torch-pruning', 'group-sl')
]


def named(row: Row) -> Name:
    """The method and its preset."""
    return row['method'], row['preset']


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some columns, sorted."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return dict(sorted(found.items()))


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, None for a single value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.fmean(values), error


def written(mean: float, error: float | None, sign: str = '') -> str:
    """``87.12 ± 0.30``."""
    return f'{mean:{sign}.2f}' + (f' ± {error:.2f}' if error is not None else '')


def difference(own: Mapping[Any, float], reference: Mapping[Any, float]) -> str:
    """The paired difference over what both have: seeds, or other keys of a pair."""
    seeds = sorted(own.keys() & reference.keys())
    if not seeds:
        return ''
    mean, error = mean_and_error([own[seed] - reference[seed] for seed in seeds])
    if error is None or len(seeds) < FEWEST:
        return f'{mean:+.2f} (seeds: {len(seeds)}, too few to say)'
    text = written(mean, error, '+')
    return f'**{text}**' if mean and abs(mean) >= 2 * error else f'none ({text})'


def comparison(rows: Sequence[Row], accuracy: str = 'top1') -> str:
    """The table of one data set, network, budget, length and way to compare; the best first.

    Args:
        rows: Of these.
        accuracy: The column that counts, ``'top1'`` or ``'validation_top1'``.
    """
    by_method: dict[Name, list[Row]] = defaultdict(list)
    for row in rows:
        by_method[named(row)].append(row)
    scores = {name: {r['seed']: r[accuracy] for r in own} for name, own in by_method.items()}
    reference = next((name for name in REFERENCES if name in scores), REFERENCES[0])
    named_accuracy = 'top-1, %' if accuracy == 'top1' else 'validation top-1, %'
    lines = []
    for name in sorted(scores, key=lambda name: -statistics.fmean(scores[name].values())):
        own = by_method[name]
        against = difference(scores[name], scores.get(reference, {}))

        def mean(column: str, own: list[Row] = own) -> float:
            return statistics.fmean(row[column] for row in own)

        lines.append(
            (
                ': '.join(name),
                len(own),
                written(*mean_and_error(list(scores[name].values()))),
                '' if name == reference else against,
                f'{mean("macs_ratio"):.1%}',
                f'{mean("params_ratio"):.1%}',
                f'{mean("epochs"):.0f}',
                f'{mean("seconds"):.0f}',
            )
        )
    header = (
        'method', 'seeds', named_accuracy, f'against {": ".join(reference)}', 'MACs', 'parameters',
        'epochs', 'seconds',
    )  # fmt: skip
    return table(header, lines)


def tuning(rows: Sequence[Row]) -> str:
    """The values that were tried of every option; the best by validation accuracy is in bold.

    Args:
        rows: Of one data set, network, budget, length and way to compare.
    """
    tried: dict[tuple[str, str, str], dict[float, float]] = defaultdict(dict)
    for row in rows:
        of = setting_of(row)
        *held, (name, value) = of.options.items()
        option = ', '.join((name, *(f'{other}={at:g}' for other, at in held)))
        tried[of.method, of.variant, option][value] = row['validation_top1']
    best: dict[tuple[str, str], float] = defaultdict(float)
    for (method, preset, _), found in tried.items():
        best[method, preset] = max(best[method, preset], *found.values())
    lines = []
    for (method, preset, name), found in sorted(tried.items(), key=lambda item: item[0][:2]):
        cells = [
            f'**{value:g}: {found[value]:.2f}**'
            if found[value] == best[method, preset]
            else f'{value:g}: {found[value]:.2f}'
            for value in sorted(found)
        ]
        lines.append((f'{method}: {preset}', name, *cells))
    width = max((len(line) for line in lines), default=2)
    header = ('method', 'option', *[f'value {i}' for i in range(1, width - 1)])
    return table(header, [(*line, *[''] * (width - len(line))) for line in lines])


def members(rows: Sequence[Row]) -> str:
    """Architectures of one budget, each trained alone, the best first; how far they differ.

    A row's accuracy is taken as the sum of its architecture's, its seed's and noise.
    """
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        scores[row['architecture']][row['seed']] = row['top1']
    shares = {row['architecture']: row['params_ratio'] for row in rows}
    seeds = sorted(set.intersection(*({*own} for own in scores.values())))
    table_of = np.array([[own[seed] for seed in seeds] for own in scores.values()])
    own_means = table_of.mean(axis=1)
    lines = [
        (name, f'{shares[name]:.1%}', *(f'{own[seed]:.2f}' for seed in seeds), f'{mean:.2f}')
        for mean, (name, own) in sorted(
            zip(own_means, scores.items(), strict=True), key=lambda pair: -pair[0]
        )
    ]
    header = ('architecture', 'parameters', *(f'seed {seed}' for seed in seeds), 'mean')
    found = own_means.var(ddof=1)
    text = f'{table(header, lines)}\n\nStandard deviation of the means, in points: {found**0.5:.2f}'
    if len(seeds) > 1:
        left = table_of - own_means[:, None] - table_of.mean(axis=0) + table_of.mean()
        freedom = len(scores) - 1, (len(scores) - 1) * (len(seeds) - 1)
        noise = (left**2).sum() / freedom[1] / len(seeds)
        ratio = found / noise
        chance = stats.f.sf(ratio, *freedom)
        low, own, high = (
            max(0.0, noise * (ratio / at - 1)) ** 0.5
            for at in (stats.f.ppf(0.975, *freedom), 1, stats.f.ppf(0.025, *freedom))
        )
        text += (
            f'; what noise alone would give: {noise**0.5:.2f}; of the architectures themselves: '
            f'{own:.2f}, with 95 % between {low:.2f} and {high:.2f} (F = {ratio:.2f} with '
            f'{freedom[0]} and {freedom[1]} degrees of freedom, p = {chance:.2f})'
        )
    return f'{text}.'


def several(rows: Sequence[Row]) -> str:
    """One run for all budgets against a run for each: differences by budget, and their mean.

    Args:
        rows: Of one data set, network, length and way to compare.
    """
    scores: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        scores[row['preset']][row['budget']][row['seed']] = row['top1']
    budgets = sorted(set.union(*({*scores[preset]} for preset in ONE_RUN)))
    lines = []
    for preset, own in ONE_RUN.items():
        here, alone = scores[preset], scores[own]
        cells = [difference(here[budget], alone[budget]) for budget in budgets]
        if any(cells):
            seeds = set.intersection(*({*found[b]} for found in (here, alone) for b in budgets))
            means = (
                {seed: statistics.fmean(found[b][seed] for b in budgets) for seed in seeds}
                for found in (here, alone)
            )
            lines.append((f'stp: {preset}', f'stp: {own}', *cells, difference(*means)))
    header = ('one run', 'against', *(f'{budget:.0%}' for budget in budgets), 'mean of them')
    return table(header, lines)


def in_short(rows: Sequence[Row], pairs: Sequence[tuple[Name, Name]]) -> str:
    """Differences of pairs of methods, a line for each setting and pair.

    Args:
        rows: Of any; those at equal time count, where there are validation images.
        pairs: A method, and what it is compared with.
    """
    timed = [r for r in rows if r['compare'] == 'time' and r.get('validation_top1') is not None]
    lines = []
    for (data, network, budget, length, device), own in grouped(timed, *SETTING, 'device').items():
        of = (f'{network}, {data}', f'{budget:.0%}', f'{length:g} T')
        for pair in pairs:
            differences = [
                difference(*({r['seed']: r[column] for r in own if named(r) == name} for name in
                             pair))
                for column in ('top1', 'validation_top1')
            ]  # fmt: skip
            if any(differences):
                lines.append((*of, *map(': '.join, pair), *differences, device))
    header = (
        'network, data', 'MACs', 'time', 'method', 'against', 'top-1', 'on validation images',
        'device',
    )  # fmt: skip
    return table(header, lines)


def all_but(key: str) -> list[str]:
    """Of what tables are apart by."""
    return [name for name in BY if name != key]


def titled(rows: Sequence[Row], text: str, of_one_budget: bool = True) -> str:
    """Text about rows below a heading that says what they have in common."""
    row = rows[0]
    budget = f'{row["budget"]:.0%} of the MACs, ' if of_one_budget else ''
    heading = (
        f'{row["data"]}, {row["network"]}, {budget}equal {row["compare"]}, {row["length"]:g} T, '
        f'{row["device"]}'
    )
    return f'### {heading}\n\n{text}'


def curves(rows: Sequence[Row], along: str, title: str, label: str, out: Path) -> None:
    """Mean accuracy with its standard error along a column, a line for each method.

    Points of fewer than `FEWEST` seeds are hollow.
    """
    figure, axes = plt.subplots(figsize=(8.5, 5), layout='constrained')
    names = sorted({named(row) for row in rows})
    styles = itertools.cycle(
        itertools.product(['-', '--', ':'], [f'C{i}' for i in range(10)])  # 30 that differ
    )
    for name, (dash, color) in zip(names, styles, strict=False):
        points = []
        for (value,), own in grouped([r for r in rows if named(r) == name], along).items():
            mean, error = mean_and_error([row['top1'] for row in own])
            points.append((value, mean, error or 0.0, len(own) >= FEWEST))
        x, y, errors, enough = zip(*points, strict=True)
        axes.errorbar(x, y, errors, label=': '.join(name), linestyle=dash, color=color, capsize=2)
        faces = [color if own else 'white' for own in enough]
        axes.scatter(x, y, 20, faces, edgecolors=color, zorder=3)
    axes.set_xticks(sorted({row[along] for row in rows}))
    axes.set_title(f'{title}; hollow: fewer than {FEWEST} seeds', fontsize=9)
    axes.set(xlabel=label, ylabel='top-1 of the compact network, %')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(out, dpi=110)
    plt.close(figure)


def pictures(rows: Sequence[Row], folder: Path) -> list[str]:
    """Accuracy against training time and against MACs, where there is more than one value."""
    lines = []
    for along, label in (('length', 'training allowed, in T'), ('budget', 'MACs left')):
        others = all_but(along)
        for keys, own in grouped(rows, *others).items():
            own = [row for row in own if row['method'] != 'dense' or along == 'length']
            values = {name: set[float]() for name in map(named, own)}
            for row in own:
                values[named(row)].add(row[along])
            own = [row for row in own if len(values[named(row)]) > 1]  # a point is no curve
            if not own:
                continue
            name = '_'.join(['compare', along, *(f'{key:g}' if isinstance(key, float) else key
                                                 for key in keys)])  # fmt: skip
            name = name.replace('.', '').replace(' ', '_')
            title = ', '.join(f'{k} {v}' for k, v in zip(others, keys, strict=True))
            curves(own, along, title, label, folder / f'{name}.png')
            lines.append(f'![{title}: accuracy against {along}](images/{name}.png)')
    return lines


def main() -> None:
    """Rewrites the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rows', type=Path, default=ROWS, help='the folder of the rows')
    parser.add_argument('--page', type=Path, default=DOCS / 'compare.md')
    told = 'the tables, with rows of options too, to the terminal alone'
    parser.add_argument('--print', action='store_true', help=told)
    args = parser.parse_args()
    rows = read_rows(args.rows)
    if not rows:
        parser.error(f'--rows: there is no row in {args.rows}')
    compared, given = [], []
    for row in rows:
        if (args.print or '@' not in row['preset']) and row['seed'] < TRIALS:
            (given if row['method'] == 'given' else compared).append(row)
    validated = [row for row in rows if row.get('validation_top1') is not None]
    decided = [row for row in validated if '@' not in row['preset'] and row['seed'] > TRIALS]
    tables, after = (
        '\n\n'.join(titled(r, comparison(r)) for r in grouped(own, *BY).values())
        for own in (compared, given)
    )
    if args.print:
        print(tables, after, sep='\n\n')
        if left := len(rows) - len(compared) - len(given):
            print(f'{left} rows of seeds from {TRIALS} on are for decisions, and left out')
        return
    images = args.page.parent / 'images'
    images.mkdir(exist_ok=True)
    page = args.page.read_text()
    page = insert(page, 'comparison', tables)
    page = insert(page, 'given', after or 'None yet.')
    page = insert(page, 'in_short', in_short(compared, IN_SHORT))
    page = insert(page, 'given_in_short', in_short(given, IN_SHORT_GIVEN))
    one_run = [
        titled(own, several(own), of_one_budget=False)
        for own in grouped(
            [row for row in compared if row['method'] == 'stp'], *all_but('budget')
        ).values()
        if ONE_RUN.keys() & {row['preset'] for row in own}
    ]
    page = insert(page, 'budgets', '\n\n'.join(one_run) or 'None yet.')
    alone = [
        titled(own, members(own))
        for own in grouped([r for r in rows if r['preset'].startswith('member@')], *BY).values()
    ]
    page = insert(page, 'members', '\n\n'.join(alone) or 'None yet.')
    page = insert(page, 'pictures', '\n\n'.join(pictures(compared, images)) or 'None yet.')
    recipes = [
        titled(own, comparison(own, 'validation_top1')) for own in grouped(decided, *BY).values()
    ]
    page = insert(page, 'recipes', '\n\n'.join(recipes) or 'None yet.')
    tried = [row for row in validated if '@' in row['preset'] and row['seed'] == TRIALS]
    tuned = [titled(own, tuning(own)) for own in grouped(tried, *BY).values()]
    page = insert(page, 'tuning', '\n\n'.join(tuned) or 'None yet.')
    args.page.write_text(page)
    print(f'{len(rows)} rows: {args.page}')


if __name__ == '__main__':
    main()
