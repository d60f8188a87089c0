"""The paper's tables, from rows alone, with the paper's numbers beside ours.

The paper's data and widths are others, so only the order of the methods can be compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from measure import table
from published import (
    BUDGETS,
    CIFAR100,
    COMPONENTS,
    SCHEDULES,
    SEEDS,
    TINY_IMAGENET,
    TRANSFORMERS,
    Numbers,
)
from report import BY, TRIALS, Name, Row, difference, mean_and_error, named, written
from setting import read_rows

NONE = '–'  # not run, or not in the paper
PAPER = ('stp', 'paper')

# The paper's names, and what they are here.
METHODS: dict[str, Name] = {
    'dense': ('dense', 'plain'),
    'rst-s': ('rst-s', 'paper'),
    'group-sl': ('group-sl', 'paper'),
    'otov2': ('otov2', ''),  # does not run with this PyTorch
    'refill': ('refill', 'imp'),
    'stp': PAPER,
}

# Of a table: the data and network here, and the network of the paper that it stands for.
Columns = Sequence[tuple[str, str, str]]
CNNS: Columns = (
    ('fashion_6k_14', 'r18_slim', 'ResNet-50'),
    ('fashion_6k_14', 'r50_slim', 'ResNet-50'),
    ('fashion_6k_56', 'mbv3_slim', 'MBV3'),
    ('fashion_6k_14', 'wrn_slim', 'WRN28-10'),
)
HUNDRED_CLASSES: Columns = (
    ('glyphs_28', 'r18_slim', 'ResNet-50'),
    ('glyphs_28', 'r50_slim', 'ResNet-50'),
)
SEQUENCES: Columns = (
    ('fashion_6k_14', 'vit_slim', 'ViT'),
    ('fashion_6k_14', 'swin_slim', 'Swin'),
)

# Table 5: what is on: stimulative training, expansion, exploration, multi-dimension sampling.
SWITCHES: Sequence[tuple[str, Name]] = (
    ('✓ ✓ ✓ ✓', PAPER),
    ('✓ – ✓ ✓', ('stp', 'paper-no-expansion')),
    ('✓ ✓ – ✓', ('stp', 'paper-no-exploration')),
    ('✓ ✓ ✓ –', ('stp', 'paper-no-depth')),
    ('✓ – – ✓', ('stp', 'paper-st-depth')),
    ('✓ – – –', ('stp', 'paper-st')),
    ('– – – –', ('sparsified', 'l2')),
)

# The pairs of presets that differ in one of them alone: with it, without it.
DIFFER_IN: dict[str, Sequence[tuple[str, str]]] = {
    'expansion': (('paper', 'paper-no-expansion'), ('paper-no-exploration', 'paper-st-depth')),
    'exploration': (('paper', 'paper-no-exploration'), ('paper-no-expansion', 'paper-st-depth')),
    # where widths alone are drawn there is one network, and so no exploration
    'depth': (('paper-no-exploration', 'paper-no-depth'), ('paper-st-depth', 'paper-st')),
}


def found_rows(
    args: argparse.Namespace, columns: Sequence[str] = BY, **wanted: object
) -> list[Row]:
    """The rows of the command line's data, network, budget, length and comparison, or of some."""
    where = {name: getattr(args, name) for name in columns} | wanted
    return [
        row
        for row in read_rows(args.rows)
        if row['seed'] < TRIALS and all(row[name] == value for name, value in where.items())
    ]


def scores(rows: Sequence[Row], name: Name) -> dict[int, float]:
    """Accuracies of a method, by seed."""
    return {row['seed']: row['top1'] for row in rows if named(row) == name}


def cell(own: dict[int, float]) -> str:
    """``87.12 ± 0.30 (5)``: the mean, its standard error and how many seeds it is of."""
    return f'{written(*mean_and_error(list(own.values())))} ({len(own)})' if own else NONE


def number(value: float | None) -> str:
    """One of the paper's."""
    return NONE if value is None else f'{value:.2f}'


def methods_table(columns: Columns, published: Numbers) -> Callable[[argparse.Namespace], str]:
    """Tables 1 to 3: methods by networks and budgets, of networks with a row."""

    def make(args: argparse.Namespace) -> str:
        lines = []
        for data, network, stands_for in columns:
            theirs = published[stands_for]
            by_budget = [
                found_rows(args, data=data, network=network, budget=budget) for budget in BUDGETS
            ]
            if not any(scores(rows, PAPER) for rows in by_budget):
                continue
            for name, own in METHODS.items():
                if name not in theirs:
                    continue
                numbers = theirs[name] if len(theirs[name]) > 1 else theirs[name] * len(BUDGETS)
                cells = [
                    text
                    for rows, paper in zip(by_budget, numbers, strict=True)
                    for text in (cell(scores(rows, own)), number(paper))
                ]
                lines.append((f'{network}, {data}', stands_for, name, *cells))
        header = ['here', 'in the paper', 'method']
        for budget in BUDGETS:
            header += [f'{budget:.0%}, here', f'{budget:.0%}, paper']
        return table(header, lines) if lines else ''

    return make


def table_5(args: argparse.Namespace) -> str:
    """Components off; the differences are to the whole recipe, and with each on and off."""
    rows = found_rows(args)
    if not any(scores(rows, name) for _, name in SWITCHES):
        return ''
    whole = scores(rows, PAPER)
    lines = []
    for (switches, name), paper in zip(SWITCHES, COMPONENTS, strict=True):
        own = scores(rows, name)
        against = '' if name == PAPER else difference(own, whole) or NONE
        lines.append(
            (
                switches, ': '.join(name), cell(own), against, number(paper),
                '' if name == PAPER else f'{paper - COMPONENTS[0]:+.2f}',
            )
        )  # fmt: skip
    header = (
        'ST, expansion, exploration, sampling', 'preset', 'here', 'difference', 'paper',
        'difference',
    )  # fmt: skip
    return f'{table(header, lines)}\n\n{effects(rows)}'


def effects(rows: Sequence[Row]) -> str:
    """Each component on, against off, over all pairs that differ in nothing else."""
    lines = []
    for component, pairs in DIFFER_IN.items():
        on, off = (
            {
                (pair, seed): top1
                for pair, preset in enumerate(side)
                for seed, top1 in scores(rows, ('stp', preset)).items()
            }
            for side in zip(*pairs, strict=True)
        )
        lines.append((component, len(on.keys() & off.keys()), difference(on, off) or NONE))
    return table(('component', 'pairs', 'on, against off'), lines)


def table_7(args: argparse.Namespace) -> str:
    """The last pool of at least ten, by budget, for one seed; what is left of it is in bold."""
    lines = []
    for budget in BUDGETS:
        for row in found_rows(args, budget=budget, seed=args.seed):
            if named(row) != PAPER or 'last' not in row:
                continue
            for text, top1 in row['last'].items():
                bold = '**' if text == row['architecture'] else ''
                lines.append((f'{budget:.0%}', f'{bold}{text}{bold}', f'{top1:.2f}'))
    return table(('MACs', 'architecture', 'top-1, %'), lines) if lines else ''


def table_8(args: argparse.Namespace) -> str:
    """What is left, by seed; the paper's five beside."""
    own = sorted((r for r in found_rows(args) if named(r) == PAPER), key=lambda row: row['seed'])
    if not own:
        return ''
    lines = [
        (
            'here', str(row['seed']), row['architecture'], f'{row["top1"]:.2f}',
            f'{100 * row["macs_ratio"]:.2f}', f'{100 * row["params_ratio"]:.2f}',
        )
        for row in own
    ]  # fmt: skip
    lines += [
        ('paper', str(index), text, *(f'{value:.2f}' for value in values))
        for index, (text, *values) in enumerate(SEEDS, 1)
    ]
    return table(('', 'seed', 'architecture', 'top-1, %', 'MACs, %', 'parameters, %'), lines)


def table_9(args: argparse.Namespace) -> str:
    """Three times the training; the paper's time of an epoch beside."""
    once, thrice = (found_rows(args, length=length) for length in (1.0, 3.0))
    if not any(scores(once + thrice, METHODS[name]) for name in SCHEDULES):
        return ''
    lines = [
        (
            name, cell(scores(once, METHODS[name])), cell(scores(thrice, METHODS[name])),
            number(first), number(second), f'{time / SCHEDULES["rst-s"][2]:.2f}',
        )
        for name, (first, second, time) in SCHEDULES.items()
    ]  # fmt: skip
    header = ('method', 'here, T', 'here, 3 T', 'paper, T', 'paper, 3 T', 'epoch, in RST-S’s')
    return table(header, lines)


# empty where there is no row of ours
TABLES: dict[str, Callable[[argparse.Namespace], str]] = {
    '1': methods_table(CNNS, CIFAR100),
    '2': methods_table(HUNDRED_CLASSES, TINY_IMAGENET),
    '3': methods_table(SEQUENCES, TRANSFORMERS),
    '5': table_5,
    '7': table_7,
    '8': table_8,
    '9': table_9,
}
