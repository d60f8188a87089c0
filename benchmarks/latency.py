"""How much faster a compact ResNet-50 is on the CPU, beside how many multiply-adds it saves.

For every budget some architectures are drawn by ``--seed`` from all that meet it, exported, and run
in turn with the dense network, eagerly and in ONNX Runtime. The weights are random, which does not
matter to a dense kernel, and which member of a budget training would choose is not known here: the
range over the members says how much that matters. ONNX Runtime's outputs have to equal PyTorch's
within 1e-4 (relative to the largest logit); the script fails if one does not.

Beside them stand figures that others published for their pruned ResNet-50 at about the same saving,
on other machines, and what Torch-Pruning's uniform pruning to the same budget gives on this one.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch_pruning as tp
from measure import environment, interleave, parser, prepare, ratios, report, spread
from measure import table as markdown
from networks import TOLERANCE, classifier, members
from torch import Tensor, nn

from mmstp import Architecture, Supernet
from mmstp.subnets.cut import count_macs

# dense over pruned multiply-adds, and the speed-up published for it
PUBLISHED = (
    (2.0, 'mmrazor 1.46 at 2.0 (CPU, ONNX)'),
    (2.04, 'Torch-Pruning 1.35 at 2.04 (GPU, batch 64)'),
    (3.85, 'Torch-Pruning 2.19 at 3.85 (GPU, batch 64)'),
    (7.8, 'Torch-Pruning 2.98 at 7.8 (GPU, batch 64)'),
)


@dataclass
class Candidate:
    """A network to be timed.

    Attributes:
        row: The row of the table that it belongs to.
        macs: Its multiply-adds, one image.
        eager: Runs it in PyTorch.
        onnx: Runs it in ONNX Runtime.
        difference: Between the two, relative to the largest output.
    """

    row: str
    macs: int
    eager: Callable[[], Tensor]
    onnx: Callable[[], Sequence[np.ndarray]]
    difference: float


def candidate(row: str, network: nn.Module, inputs: Tensor, threads: int) -> Candidate:
    """Exports a network to ONNX and compares the outputs."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / 'network.onnx'
        torch.onnx.export(network, (inputs,), path, dynamo=True, external_data=False, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    feed = {session.get_inputs()[0].name: inputs.numpy()}

    def eager() -> Tensor:
        with torch.inference_mode():
            return network(inputs)

    def onnx() -> Sequence[np.ndarray]:
        return session.run(None, feed)

    expected = eager().numpy()
    difference = float(np.abs(onnx()[0] - expected).max() / np.abs(expected).max())
    return Candidate(row, count_macs(network, (inputs[:1],)), eager, onnx, difference)


def uniform(dense: nn.Module, target: float, inputs: Tensor) -> nn.Module:
    """The dense network by Torch-Pruning: the same fraction of every layer, to the same budget."""
    wanted = target * count_macs(dense, (inputs,))
    best, low, high = dense, 0.0, 0.95
    for _ in range(8):
        ratio = (low + high) / 2
        network = copy.deepcopy(dense)
        kept = [m for m in network.modules() if isinstance(m, nn.Linear)]
        tp.pruner.BasePruner(
            network,
            inputs,
            importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=kept,
            round_to=8,
        ).step()
        macs = count_macs(network, (inputs,))
        if abs(macs - wanted) < abs(count_macs(best, (inputs,)) - wanted):
            best = network
        low, high = (ratio, high) if macs > wanted else (low, ratio)
    return best


def published(saving: float) -> str:
    """Figures of others whose saving is within 5 % of this one."""
    return '; '.join(text for at, text in PUBLISHED if abs(saving / at - 1) < 0.05)


def main() -> int:
    """Measures, prints the table and returns 1 if ONNX Runtime's outputs differ."""
    options = parser(__doc__, repeats=25)
    options.add_argument(
        '--targets',
        type=float,
        nargs='*',
        default=[0.55, 0.49, 0.35, 0.26, 0.15, 0.128],
        help="budgets (default %(default)s: the paper's, and those of published figures)",
    )
    options.add_argument('--members', type=int, default=3, help='of each budget')
    options.add_argument('--architecture', action='append', default=[], help='besides')
    options.add_argument('--batch', type=int, default=1)
    options.add_argument('--size', type=int, default=224, help='of the image (default %(default)s)')
    options.add_argument(
        '--torch-pruning', action=argparse.BooleanOptionalAction, default=True, help='prune with it'
    )
    args = options.parse_args()
    prepare(args)
    logging.disable(logging.WARNING)  # of the exporter to ONNX

    dense = classifier()
    inputs = torch.randn(args.batch, 3, args.size, args.size)
    supernet = Supernet(copy.deepcopy(dense), inputs[:1])
    candidates = [candidate('dense', dense, inputs, args.threads)]

    def add(row: str, network: nn.Module) -> None:
        candidates.append(candidate(row, network, inputs, args.threads))

    for target in args.targets:
        for architecture in members(supernet, target, args.members, args.seed):
            add(f'mmstp, {target:.3g}', supernet.export(architecture))
        if args.torch_pruning:
            add(f'Torch-Pruning, {target:.3g}', uniform(dense, target, inputs[:1]))
    for text in args.architecture:
        add(f'mmstp, `{text}`', supernet.export(Architecture.parse(text)))

    functions: dict[str, Callable[[], object]] = {}
    for index, found in enumerate(candidates):
        functions[f'eager {index}'] = found.eager
        functions[f'onnx {index}'] = found.onnx
    seconds = interleave(functions, args.repeats, warmup=3)

    rows = []
    for row in dict.fromkeys(found.row for found in candidates):
        own = [index for index, found in enumerate(candidates) if found.row == row]
        saving = statistics.median(candidates[0].macs / candidates[i].macs for i in own)
        line = [row, f'{1 / saving:.1%}', f'{saving:.2f}']
        for engine in ('eager', 'onnx'):
            times = [seconds[f'{engine} {i}'] for i in own]
            line.append(f'{1000 * statistics.median(map(statistics.median, times)):.3g}')
            speedups = [ratios(seconds[f'{engine} 0'], time) for time in times]
            medians = [statistics.median(found) for found in speedups]
            line.append(
                f'{statistics.median(medians):.2f} ({min(medians):.2f} to {max(medians):.2f})'
                if len(own) > 1
                else spread(speedups[0])
            )
        line.append(f'{max(candidates[i].difference for i in own):.0e}')
        line.append(published(saving) if row.startswith('mmstp') else '')
        rows.append(line)
    equal = all(found.difference <= 1e-4 for found in candidates)
    report(
        args,
        environment('mmpretrain', 'onnx', 'onnxruntime', 'torch-pruning'),
        f'ResNet-50, {args.size} pixels, batch {args.batch}, CPU, random weights; {args.members} '
        f'architectures for each budget (within {TOLERANCE:.0%}), drawn with seed {args.seed}. '
        f'Medians of {args.repeats} rounds; speed-ups are against the dense network in the same '
        'engine, with the range over the members in brackets, or the quartiles where there is one '
        'network. Torch-Pruning prunes every layer to the same fraction, the stem too.',
        markdown(
            (
                'network, budget',
                'MACs',
                'saving',
                'eager, ms',
                'eager speed-up',
                'ONNX Runtime, ms',
                'ONNX Runtime speed-up',
                'ONNX Runtime against PyTorch',
                'published by others, speed-up at saving',
            ),
            rows,
        ),
        'The outputs of ONNX Runtime equal those of PyTorch within 1e-4.'
        if equal
        else '**The outputs of ONNX Runtime differ from those of PyTorch.**',
    )
    return 0 if equal else 1


if __name__ == '__main__':
    sys.exit(main())
