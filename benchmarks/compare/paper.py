"""The paper's tables and figures, ours beside the paper's.

``paper.py table 5``, ``paper.py table all`` and ``paper.py figure 6`` write into
``docs/paper.md``, and pictures to ``docs/images/``. Tables and Figure 2 are made of rows alone
(``run.py --suite paper``); figures 4, 6 and 7 need the weights of runs, which are begun or
continued where they are missing (``--minutes`` as in ``run.py``).
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from figures import DOCS, FIGURES, PICTURE, SEARCHED  # noqa: E402
from measure import ROOT  # noqa: E402
from pages import insert  # noqa: E402
from setting import COMPARE, ROWS, read_rows  # noqa: E402
from tables import TABLES  # noqa: E402
from training import PausedError  # noqa: E402

KINDS = {'table': TABLES, 'figure': FIGURES}


def main() -> int:
    """Returns 1 if a run was paused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('kind', choices=KINDS)
    add(
        'number',
        help=f'of a table ({", ".join(TABLES)}) or a figure ({", ".join(FIGURES)}), or all',
    )
    add('--data', default='fashion_6k_14', help='default %(default)s; tables 1 to 3 have their own')
    add('--network', default='r18_slim', help='likewise')
    add('--budget', type=float, default=0.15)
    add('--length', type=float, default=1.0, help='in T')
    add('--compare', choices=COMPARE, default='epochs', help='default %(default)s, the paper’s')
    add('--device', default='x86_64', help='whose rows; default %(default)s, as they name it')
    add('--preset', choices=SEARCHED, default='paper', help='of figures 6 and 7')
    add('--seed', type=int, default=0, help='of figures 4, 6 and 7 and table 7')
    add('--minutes', type=float, help='after which it pauses')
    add('--work-dir', default=str(ROOT / 'work_dirs/compare'))
    add('--rows', type=Path, default=ROWS)
    add('--print', action='store_true', help='to the terminal alone; pictures to --work-dir')
    args = parser.parse_args()
    makers = KINDS[args.kind]
    if args.number not in (*makers, 'all'):
        parser.error(f'{args.kind} {args.number} is none of {", ".join(makers)}')
    if args.kind == 'table' and not read_rows(args.rows):
        parser.error(f'--rows: there is no row in {args.rows}')
    for number in makers if args.number == 'all' else [args.number]:
        try:
            text = section(args, number)
        except PausedError:
            print('paused; the same command goes on')
            return 1
        print(text or f'{args.kind} {number}: no row is of it; the page is left as it is')
        if text and not args.print:
            page = DOCS / 'paper.md'
            page.write_text(insert(page.read_text(), f'{args.kind}_{number}', text))
    return 0


def section(args: argparse.Namespace, number: str) -> str:
    """A table or figure below what it is of; empty without a row."""
    text = KINDS[args.kind][number](args)
    if not text:
        return ''
    of = [f'{args.length:g} T, equal {args.compare}']
    if args.kind == 'figure' or number in ('5', '7', '8', '9'):
        every_budget = (args.kind, number) in (('table', '7'), ('figure', '2'), ('figure', '4'))
        of = [*([] if every_budget else [f'{args.budget:.0%} of the MACs']), *of]
        of = [args.data, args.network, *of]
    if args.kind == 'figure':
        of += [f'preset {args.preset}'] if number in ('6', '7') else []
        of += [] if number == '2' else [f'seed {args.seed}']
        if not args.print:
            text += f'\n\n![Figure {number}](images/{PICTURE.format(number)})'
    return f'{", ".join(of)}.\n\n{text}'


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    sys.exit(main())
