"""What the choice within a budget is worth in time: ResNet-50, by multiply-adds and by latency.

Of all architectures that meet a budget, the fastest, the median and the slowest by a latency table
are exported and run as the table says, in turn with the dense network; for budgets of multiply-adds
with Torch-Pruning's uniform pruning to the same budget, and with members drawn at random: of the
default widths and of those that suit the device. The weights are random, and nothing here is about
accuracy. The table is measured before, on the same machine and by the same versions, with
``python tools/latency_table.py configs/stp/r50_15pct.py --out latency.json``. Torch-Pruning prunes
the stem too; so do the pools with ``--stem``, and the table with ``--cfg-options
model.space.stem=True``. On a GPU ``--ways`` runs the dense network, the fastest and Torch-Pruning's
in other ways too, whatever the table was measured in.
"""

from __future__ import annotations

import copy
import logging
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from latency import uniform
from measure import environment, parser, prepare, ratios, report, spread, table
from networks import TOLERANCE, classifier, members
from numpy.typing import NDArray
from torch import Tensor, nn

from mmstp import Budget, Supernet
from mmstp.deploy.timing import Run, Setting
from mmstp.search.budget import feasible_rows
from mmstp.search.cost import CostModel
from mmstp.search.latency_table import LatencyTable, refuse_other
from mmstp.search.space import SearchSpace
from mmstp.subnets.cut import count_macs

SIDE = 224
WIDTHS = ('default', 'cpu', 'gpu')
WAYS = {
    'eager': dict(compile=False, graph=False),
    'graph': dict(compile=False, graph=True),
    'compile': dict(compile=True, graph=False),
    'compile+graph': dict(compile=True, graph=True),
}  # of torch to run a network
COMPARED = ('fastest', 'Torch-Pruning')


@dataclass
class Candidate:
    """A network to be timed; of several in one row the medians are shown.

    Attributes:
        row: Its budget and what it is.
        architecture: In the paper's notation, where there is one network in the row.
        macs: Its multiply-adds.
        predicted: Milliseconds by the table.
        network: Itself.
        run: Runs it as the table says.
    """

    row: tuple[str, str]
    architecture: str
    macs: int
    predicted: float | None
    network: nn.Module
    run: Run


@dataclass
class Pool:
    """Members that meet a budget, the fastest by the table first.

    Attributes:
        rows: Of the space, shape (members, choices).
        latency: Milliseconds by the table, shape (members,).
        macs: Parts of the dense network's, shape (members,).
    """

    rows: NDArray[np.int64]
    latency: NDArray[np.float64]
    macs: NDArray[np.float64]

    @classmethod
    def of(cls, target: float, metric: str, space: SearchSpace, cost: CostModel) -> Pool:
        """All that a run with this budget could draw its pool from."""
        budget = Budget.of(target, metric, TOLERANCE, space, cost)
        rows = feasible_rows(space, cost, budget, 1000)
        rows = rows[np.argsort(cost.latency(rows), kind='stable')]
        return cls(rows, cost.latency(rows), cost.macs(rows) / cost.macs(space.largest))

    def __len__(self) -> int:
        return len(self.rows)

    def chosen(self) -> Iterator[tuple[str, int]]:
        """The places of the fastest, the median and the slowest member."""
        yield from (('fastest', 0), ('median', len(self) // 2), ('slowest', len(self) - 1))


def main() -> None:
    """Measures and prints the tables."""
    options = parser(__doc__, repeats=15)
    options.add_argument('--table', default='latency.json', help='default %(default)s')
    options.add_argument(
        '--targets', type=float, nargs='*', default=[0.48, 0.26, 0.15], help='of multiply-adds'
    )
    options.add_argument(
        '--latency-targets', type=float, nargs='*', default=[0.5, 0.27, 0.17],
        help='of the latency (default %(default)s)',
    )  # fmt: skip
    options.add_argument('--stem', action='store_true', help='prune the stem too')
    options.add_argument(
        '--ways', nargs='*', choices=WAYS, default=[], help='of torch, further ones'
    )
    options.add_argument('--members', type=int, default=3, help='drawn at random')
    args = options.parse_args()
    prepare(args)
    logging.disable(logging.WARNING)  # of the exporter to ONNX
    latency_table = LatencyTable.read(args.table)
    setting = Setting.of(latency_table.setting)
    refuse_other('setting', latency_table.setting, setting.described())
    dense, images = classifier(), torch.randn(1, 3, SIDE, SIDE)
    supernets = {
        widths: Supernet(
            copy.deepcopy(dense),
            images,
            stem=args.stem,
            **({} if widths == 'default' else {'widths': widths}),
        )
        for widths in WIDTHS
    }
    supernet = supernets['default']
    space, cost = supernet.space, supernet.cost
    cost.use_latency(latency_table)
    own_widths = 'gpu' if setting.device == 'cuda' else 'cpu'
    batch = torch.randn(setting.batch, 3, SIDE, SIDE)
    candidates: list[Candidate] = []

    def add(budget: str, name: str, network, architecture='', predicted=None) -> None:
        macs = count_macs(network, (images,))
        run = setting.runner(network, batch)
        candidates.append(
            Candidate((budget, name), str(architecture), macs, predicted, network, run)
        )

    budgets = [(target, 'macs') for target in args.targets]
    budgets += [(target, 'latency') for target in args.latency_targets]
    contents = []
    add('dense', '', supernet.export(space.largest), space.largest, *cost.latency(space.largest))
    for target, metric in budgets:
        label = f'{target:.0%} of the {"MACs" if metric == "macs" else metric}'
        pools = {
            widths: Pool.of(target, metric, other.space, cost.within(other.space))
            for widths, other in supernets.items()
        }
        for widths, pool in pools.items():
            times = [f'{pool.latency[place]:.4g}' for _, place in pool.chosen()]
            macs = f'{pool.macs.min():.1%} to {pool.macs.max():.1%}'
            contents.append([label, widths, f'{len(pool):,}', macs, *times])
        pool = pools['default']
        for name, place in pool.chosen():
            member = space.decode(pool.rows[place])
            add(label, f'{name} of {len(pool):,}', supernet.export(member), member,
                pool.latency[place])  # fmt: skip
        if metric == 'macs':
            for widths in ('default', own_widths):
                other = supernets[widths]
                for member in members(other, target, args.members, args.seed):
                    add(label, f'{args.members} at random, {widths} widths', other.export(member))
            add(label, 'Torch-Pruning', uniform(dense, target, images))
    seconds = setting.seconds([one.run for one in candidates], args.repeats).T

    peers = {one.row[0]: i for i, one in enumerate(candidates) if one.row[1] == 'Torch-Pruning'}
    lines = []
    for row in dict.fromkeys(one.row for one in candidates):
        own = [i for i, one in enumerate(candidates) if one.row == row]
        first = candidates[own[0]]
        macs = statistics.median(candidates[i].macs for i in own) / candidates[0].macs
        times = np.median(seconds[own], axis=0).tolist()
        lines.append([
            *row,
            f'`{first.architecture}`' if first.architecture else '',
            f'{macs:.1%}',
            f'{first.predicted:.4g}' if first.predicted else '',
            f'{1000 * statistics.median(times):.4g}',
            spread(ratios(seconds[0].tolist(), times)),
            spread(ratios(seconds[peers[row[0]]].tolist(), times)) if row[0] in peers else '',
        ])  # fmt: skip
    further = []
    if args.ways:
        compared = [one for one in candidates if not one.row[1] or one.row[1].startswith(COMPARED)]
        further = [
            'In other ways of PyTorch: milliseconds, and the speed-up over the dense network.',
            table(
                ('budget', 'network', *args.ways),
                in_other_ways(compared, setting, args.ways, batch, args.repeats),
            ),
        ]
    engines = dict.fromkeys(['onnx', 'onnxruntime', setting.backend])
    engines.pop('torch', None)
    report(
        args,
        environment('mmpretrain', *engines, 'torch-pruning'),
        f'ResNet-50{", stem included" * args.stem}, {SIDE} pixels, random weights; budgets within '
        f'{TOLERANCE:.0%}. The table of the latency: {cost.latency_fit}. By it, what pools hold:',
        table(
            ('budget', 'widths', 'members', 'MACs', 'fastest, ms', 'median, ms', 'slowest, ms'),
            contents,
        ),
        f'Measured: medians of {args.repeats} rounds in which all take turns; ratios are formed '
        'in every round, with the quartiles in brackets.',
        table(
            ('budget', 'network', 'architecture', 'MACs', 'by the table, ms', 'measured, ms',
             'speed-up', 'over Torch-Pruning'),
            lines,
        ),
        *further,
    )  # fmt: skip


def in_other_ways(
    candidates: list[Candidate], setting: Setting, names: list[str], batch: Tensor, repeats: int
) -> list[list[str]]:
    """A line for each of the networks, the dense one first: a cell for each way to run it."""
    lines = [list(one.row) for one in candidates]
    for name in names:
        way = replace(setting, **WAYS[name])
        runs = [way.runner(one.network, batch) for one in candidates]
        seconds = way.seconds(runs, repeats).T.tolist()
        for line, own in zip(lines, seconds, strict=True):
            speedup = spread(ratios(seconds[0], own))
            line.append(f'{1000 * statistics.median(own):.4g} ms, {speedup}')
    return lines


if __name__ == '__main__':
    main()
