"""What the choice within one budget of multiply-adds is worth in time: ResNet-50.

Of all architectures that meet a budget, the fastest, the median and the slowest by a latency table
are exported and run as the table says, in turn with the dense network, with Torch-Pruning's uniform
pruning to the same budget, and with members drawn at random: of the default widths and of those
that suit the device. The weights are random, and nothing here is about accuracy. The table is
measured before, by ``python tools/latency_table.py configs/stp/r50_15pct.py --out latency.json``.
"""

from __future__ import annotations

import copy
import logging
import statistics
from dataclasses import dataclass

import numpy as np
import torch
from latency import uniform
from measure import environment, parser, prepare, ratios, report, spread, table
from networks import TOLERANCE, classifier, members

from mmstp import Budget, Supernet
from mmstp.deploy.timing import Run, Setting
from mmstp.search.budget import feasible_rows
from mmstp.search.latency_table import LatencyTable
from mmstp.subnets.cut import count_macs

SIDE = 224


@dataclass
class Candidate:
    """A network to be timed; of several in one row the medians are shown.

    Attributes:
        row: Its budget and what it is.
        architecture: In the paper's notation, where there is one network in the row.
        macs: Its multiply-adds.
        predicted: Milliseconds by the table.
        run: Runs it.
    """

    row: tuple[str, str]
    architecture: str
    macs: int
    predicted: float | None
    run: Run


def main() -> None:
    """Measures and prints the table."""
    options = parser(__doc__, repeats=15)
    options.add_argument('--table', default='latency.json', help='default %(default)s')
    options.add_argument('--targets', type=float, nargs='*', default=[0.48, 0.26, 0.15])
    options.add_argument('--members', type=int, default=3, help='drawn at random')
    args = options.parse_args()
    prepare(args)
    logging.disable(logging.WARNING)  # of the exporter to ONNX
    dense, images = classifier(), torch.randn(1, 3, SIDE, SIDE)
    supernet = Supernet(copy.deepcopy(dense), images)
    latency_table = LatencyTable.read(args.table)
    setting = Setting.of(latency_table.setting)
    widths = 'gpu' if setting.device == 'cuda' else 'cpu'
    aligned = Supernet(copy.deepcopy(dense), images, widths=widths)
    space, cost = supernet.space, supernet.cost
    cost.use_latency(latency_table)
    batch = torch.randn(setting.batch, 3, SIDE, SIDE)
    candidates: list[Candidate] = []

    def add(budget: str, name: str, network, architecture='', predicted=None) -> None:
        macs = count_macs(network, (images,))
        run = setting.runner(network, batch)
        candidates.append(Candidate((budget, name), str(architecture), macs, predicted, run))

    largest = space.largest
    add('dense', '', supernet.export(largest), largest, float(cost.latency(largest)[0]))
    for target in args.targets:
        percent = f'{target:.0%}'
        budget = Budget.of(target, 'macs', TOLERANCE, space, cost)
        rows = feasible_rows(space, cost, budget, 1000)
        predicted = cost.latency(rows)
        order = np.argsort(predicted)
        for name, place in (('fastest', 0), ('median', len(rows) // 2), ('slowest', -1)):
            chosen = space.decode(rows[order[place]])
            add(percent, f'{name} of {len(rows):,}', supernet.export(chosen), chosen,
                float(predicted[order[place]]))  # fmt: skip
        for name, other in (('default widths', supernet), (f'widths={widths!r}', aligned)):
            for chosen in members(other, target, args.members, args.seed):
                add(percent, f'{args.members} at random, {name}', other.export(chosen))
        add(percent, 'Torch-Pruning', uniform(dense, target, images))
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
            f'{first.predicted:.1f}' if first.predicted else '',
            f'{1000 * statistics.median(times):.1f}',
            spread(ratios(seconds[0].tolist(), times)),
            spread(ratios(seconds[peers[row[0]]].tolist(), times)) if row[0] in peers else '',
        ])  # fmt: skip
    report(
        args,
        environment('mmpretrain', 'onnx', 'onnxruntime', 'torch-pruning'),
        f'ResNet-50, {SIDE} pixels, random weights; budgets of multiply-adds within '
        f'{TOLERANCE:.0%}. Medians of {args.repeats} rounds in which all take turns; ratios are '
        'formed in every round, with the quartiles in brackets. The table of the latency: '
        f'{cost.latency_fit}.',
        table(
            ('budget', 'network', 'architecture', 'MACs', 'by the table, ms', 'measured, ms',
             'speed-up', 'over Torch-Pruning'),
            lines,
        ),
    )  # fmt: skip


if __name__ == '__main__':
    main()
