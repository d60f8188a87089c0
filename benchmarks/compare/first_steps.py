"""What the first steps of a search make of the pool, by how logits are normalised.

``python benchmarks/compare/first_steps.py`` trains the paper's preset from random weights for an
epoch, on the slim network of the comparison, and measures every member on training images, each
normalised by the batch. A member at chance gives every image the same class: the channels that it
keeps are out. See docs/decisions/0063-a-floor-under-small-logits.md.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure import table  # noqa: E402
from mmengine.logging import MessageHub  # noqa: E402
from setting import Setting  # noqa: E402
from torch import nn  # noqa: E402
from training import TOLERANCE, Trial, logits_of  # noqa: E402

from mmstp import STP  # noqa: E402

LR = 0.1  # what STP's rows have
CHANCE = 20.0  # percent of ten classes that a constant prediction does not reach
BATCHES = 6  # of training images, to measure on
# the paper's preset but for: options of STP, and what is added to the variance of logits
VARIANTS: dict[str, tuple[dict[str, Any], float]] = {
    'layer norm': ({}, 1e-12),
    'layer norm, cross entropy of the target': ({'target_ce': 1.0}, 1e-12),
    'layer norm, a ramp over 5 % of the run': ({'warmup': 0.05}, 1e-12),
    'layer norm with 1 added to the variance': ({}, 1.0),
    'no normalisation': ({'normalize': 'none'}, 1.0),
}


@torch.no_grad()
def accuracy(network: Any, batches: list[dict[str, Any]]) -> float:
    """On training images, in percent, normalised by the batch."""
    network.train()
    right = [
        logits_of(network, batch['inputs']).argmax(1)
        == torch.cat([sample.gt_label for sample in batch['data_samples']])
        for batch in batches
    ]
    return 100 * float(torch.cat(right).float().mean())


def measured(seed: int, steps: int, options: dict[str, Any], floor: float) -> list[float]:
    """Accuracies of the main network, then of every member of the pool."""
    trial = Trial(
        Setting('stp', 'paper', 'fashion_6k_14', 'r18_slim', 0.15, 1.0, 'epochs', seed), Path()
    )
    stp = STP(
        trial.dense(), target=0.15, tolerance=TOLERANCE, input_shape=trial.data.input_shape,
        space=trial.network.space.to_dict(), pool=dict(seed=seed), **options,
    ).train()  # fmt: skip
    stp.driver = trial  # nothing shrinks the pool
    optimizer = torch.optim.SGD(
        stp.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    loader = trial.training_images()
    run = MessageHub.get_current_instance()
    every = itertools.chain.from_iterable(itertools.repeat(loader))
    with mock.patch('mmstp.stp.losses.FLOOR', floor):
        for iteration, batch in enumerate(itertools.islice(every, steps)):
            run.update_info_dict(
                dict(iter=iteration, max_iters=trial.data.epochs * trial.steps_per_epoch())
            )
            losses = stp(**stp.data_preprocessor(batch, True), mode='loss')
            loss, _ = stp.parse_losses(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    batches = [stp.data_preprocessor(batch, False) for batch in itertools.islice(loader, BATCHES)]
    networks: list[nn.Module] = [
        stp.export(architecture) for architecture in (stp.supernet.space.largest, *stp.pool.scores)
    ]
    return [accuracy(network, batches) for network in networks]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=93, help='default %(default)s, an epoch')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = []
    for name, (options, floor) in VARIANTS.items():
        for seed in args.seeds:
            main_network, *members = measured(seed, args.steps, options, floor)
            out = sum(member < CHANCE for member in members)
            rows.append(
                (
                    name, seed, f'{main_network:.1f}', f'{np.mean(members):.1f}',
                    f'{out} of {len(members)}',
                )
            )  # fmt: skip
            print(*rows[-1], sep=' | ', flush=True)
    print(table(('distillation', 'seed', 'main network, %', 'members, %', 'at chance'), rows))


if __name__ == '__main__':
    main()
