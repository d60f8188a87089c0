"""What is known of a trained detector's subnets before they are trained.

Random members of each budget get a loss of their own, on other batches than those on which they are
compared with the main network: (a) by the maps that the dense heads give (`mmstp`'s distance), and
(b) by the features that the heads read, where a subnet has the first of the main network's channels
(one minus the correlation of each over the positions). The rank correlation of either with the loss
says what a screening by it is worth.

Beside that, the loss of RetinaNet whose head is narrower, or without one of the convolutions of its
towers, which have no way around them as residual blocks have.

``python benchmarks/detectors/untrained.py`` begins with the detectors that ``run.py`` has trained,
or trains them (a few minutes each).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measure import environment, parser, prepare, report, table
from run import BUDGETS, INPUT_SHAPE, ROOT, TOLERANCE, Study, quiet
from scipy.stats import spearmanr
from torch import Tensor, nn

from mmstp import STP, Architecture
from mmstp.subnets.cut import count_macs


def begun(study: Study, budget: float, members: int) -> STP:
    """STP around the trained detector, with so many members of a budget in its pool."""
    stp = STP(
        study.trained_dense(), target=budget, tolerance=TOLERANCE, input_shape=INPUT_SHAPE,
        pool=dict(size=members, seed=study.seed),
    )  # fmt: skip
    stp.supernet.order_channels()
    stp.train()
    return stp


def loss_of(network: Any, batches: Sequence[dict[str, Any]]) -> float:
    """The mean over batches of a detector's loss; norms normalise by the batch."""
    network.train()
    losses = (network.loss(batch['inputs'], batch['data_samples']) for batch in batches)
    return float(np.mean([float(network.parse_losses(loss)[0]) for loss in losses]))


def correlation(features: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Of the channels that both have, over the positions of all images and levels; the mean."""
    channels = features[0].shape[1]

    def normalized(maps: Sequence[Tensor]) -> Tensor:
        joined = torch.cat([one[:, :channels].transpose(0, 1).flatten(1) for one in maps], 1)
        joined = joined - joined.mean(1, keepdim=True)
        return joined / joined.norm(dim=1, keepdim=True).clamp_min(1e-12)

    return float((normalized(features) * normalized(others)).sum(1).mean())


@torch.no_grad()
def ranks(stp: STP, seen: Sequence[Any], held_out: Sequence[Any]) -> tuple[str, ...]:
    """A line: rank correlations of both distances, and losses."""
    supernet, network = stp.supernet, stp.model
    found = []
    for member in stp.pool.scores:
        outputs, features = [], []
        for batch in seen:
            images = batch['inputs']
            with supernet.activate(supernet.space.largest):
                main = stp.task.outputs(network, **batch)
                main_features = network.extract_feat(images)
            with supernet.activate(member):
                own = stp.task.outputs(network, **batch)
                outputs.append(float(stp.task.distance(own, main)))
                features.append(1 - correlation(network.extract_feat(images), main_features))
        with supernet.activate(member):
            found.append((*outputs, sum(outputs), sum(features), loss_of(network, held_out)))
    one, other, outputs, features, losses = np.array(found).T
    return (
        f'{spearmanr(one, other)[0]:.2f}',
        f'{spearmanr(outputs, losses)[0]:.2f}',
        f'{spearmanr(features, losses)[0]:.2f}',
        f'{losses[outputs.argmin()]:.2f}',
        f'{losses[features.argmin()]:.2f}',
        f'{np.median(losses):.2f}',
        f'{losses.min():.2f}',
    )


@torch.no_grad()
def towers(stp: STP, batches: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Share of the multiply-adds and loss of RetinaNet with other heads."""
    largest, image = stp.supernet.space.largest, torch.zeros(1, *INPUT_SHAPE)
    heads: dict[str, Any] = {'whole': stp.export(largest)}
    for width in (0.7, 0.5):
        chosen = Architecture(largest.depths, (*largest.widths[:-1], width))
        heads[f'{width} of the channels'] = stp.export(chosen)
    for place in range(4):
        heads[f'without convolution {place + 1} of both towers'] = shorter = stp.export(largest)
        shorter.bbox_head.cls_convs[place] = shorter.bbox_head.reg_convs[place] = nn.Identity()
    dense = count_macs(heads['whole'], (image,))
    return [
        (
            name,
            f'{count_macs(network, (image,)) / dense:.1%}',
            f'{loss_of(network, batches):.2f}',
        )
        for name, network in heads.items()
    ]


def main() -> None:
    """Measures and prints the tables."""
    options = parser(__doc__, repeats=2)
    options.add_argument('--members', type=int, default=40, help='of each budget')
    options.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/detectors')
    args: argparse.Namespace = options.parse_args()
    prepare(args)
    quiet()
    lines, of_towers = [], []
    for seed in range(args.seed, args.seed + args.repeats):
        study = Study('retinanet', seed, args.work_dir, math.inf)
        for budget in BUDGETS:
            stp = begun(study, budget, args.members)
            loaded = itertools.islice(study.dataloader('train'), 4)
            batches = [stp.data_preprocessor(copy.deepcopy(batch), True) for batch in loaded]
            lines.append((f'{budget:.0%}', str(seed), *ranks(stp, batches[:2], batches[2:])))
        of_towers = of_towers or towers(stp, batches)
    report(
        args,
        environment('mmdetection'),
        f'RetinaNet on scenes of digits after its schedule, {args.members} random members of each '
        'budget, two batches of eight images to compare them on and two for their losses.',
        table(
            ('budget', 'seed', 'rank correlation of (a) on two batches',
             'of (a) with the loss', 'of (b)', 'loss of the best by (a)', 'by (b)', 'median',
             'best'),
            lines,
        ),
        'Heads, all else whole (the first seed):',
        table(('head', 'MACs of the detector', 'loss'), of_towers),
    )  # fmt: skip


if __name__ == '__main__':
    sys.exit(main())
