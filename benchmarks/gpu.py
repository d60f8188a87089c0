"""What STP and its subnets cost on a GPU: training steps, their memory, and inference.

The same measurements as ``step.py`` and ``latency.py``, for a CUDA device and several precisions in
one process. A step of STP does the work of three networks but starts the kernels of three as well,
so where a network's kernels are too short to fill the device the limit ``1 + r + s`` cannot hold:
the table has a network at a size that fills it and one that does not. cuDNN looks for its kernels
when it sees a shape for the first time, and every pair of widths is a shape of its own, so
``--warmup`` steps come before those that are timed. Inference is eager and as a CUDA graph, of
members of each budget drawn by ``--seed``; their outputs have to be those of the active subnet,
within the precision's rounding. ``--batches`` without a number leaves it out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import environment, interleave, parser, prepare, ratios, report, spread
from measure import table as markdown
from networks import classifier, members
from step import measure, peak_memory
from torch import Tensor, nn

from mmstp import Supernet
from mmstp.deploy.timing import as_graph
from mmstp.subnets.cut import count_macs

RESNET50, IMAGENET = dict(network='resnet50', classes=1000), dict(size=224, batch=128)
CIFAR = dict(network='resnet50_cifar', classes=100, size=32, batch=256)
SMALL = dict(network='resnet18', classes=100, size=64, batch=64)
FLOAT16, LAST = dict(precision='float16'), dict(layout='channels_last')
# what a row has where its network says nothing else
COMMON = dict(
    precision='float32', layout='contiguous_format', passes='together', streams=False, compile=False
)
APART, STREAMS = dict(passes='apart'), dict(streams=True)
TRAINED: list[dict[str, Any]] = [
    {**COMMON, **network, **options}
    for network, variants in (
        (
            {**RESNET50, **IMAGENET},
            ({}, APART, STREAMS, FLOAT16, {**FLOAT16, **APART}, {**LAST, 'precision': 'bfloat16'}),
        ),
        (
            {**RESNET50, **IMAGENET, **FLOAT16, **LAST, 'batch': 64},
            ({}, APART, STREAMS),
        ),
        (CIFAR, (FLOAT16,)),
        (SMALL, (FLOAT16, {**FLOAT16, **STREAMS})),
    )
    for options in variants
]
# by precision, the largest difference of an export from the active subnet, relative to the largest
# output
PRECISIONS = {'float32': 1e-4, 'float16': 1e-2}


def step_row(args: argparse.Namespace) -> tuple[str, ...]:
    """A line of the table of training steps."""
    steps = measure(args)
    ratio = ratios(steps.stp, steps.dense)
    torch.cuda.empty_cache()
    peak = {kind: peak_memory(kind, args) for kind in ('stp', 'dense')}
    return (
        f'{args.network}, {args.size} pixels, batch {args.batch}',
        args.precision,
        args.layout.replace('_format', '').replace('_', ' '),
        args.passes + ', streams' * args.streams,
        f'{1000 * statistics.median(steps.dense):.4g}',
        f'{1000 * statistics.median(steps.stp):.4g}',
        f'{args.batch / statistics.median(steps.stp):,.0f}',
        ' / '.join(f'{share:.0%}' for share in steps.idle or ()),
        spread(ratio),
        f'{steps.limit.mean():.2f}',
        f'**{spread(ratios(ratio, steps.limit))}**',
        f'{peak["dense"] / 2**20:,.0f}',
        f'{peak["stp"] / 2**20:,.0f}',
        f'{peak["stp"] / peak["dense"]:.2f}',
        'yes' if steps.finite else '**no**',
    )


def inference_rows(args: argparse.Namespace, batch: int, precision: str) -> list[tuple[str, ...]]:
    """Lines of the table of inference: the dense ResNet-50 and members of each budget."""
    dtype = getattr(torch, precision)
    model = classifier().to(args.device)
    inputs = torch.randn(batch, 3, 224, 224, device=args.device)
    supernet = Supernet(copy.deepcopy(model), inputs[:1])
    networks: list[tuple[str, nn.Module, float]] = [('dense', model, 0.0)]
    for target in args.targets:
        for architecture in members(supernet, target, args.members, args.seed):
            cut = supernet.export(architecture)
            with supernet.activate(architecture), torch.inference_mode():
                expected = supernet.model(inputs)
            got = run(cut, inputs, dtype)()
            difference = float((got - expected).abs().max() / expected.abs().max())
            networks.append((f'{target:.0%}', cut, difference))
    macs = [count_macs(network, (inputs[:1],)) for _, network, _ in networks]
    engines = {'eager': [run(network, inputs, dtype) for _, network, _ in networks]}
    engines['graph'] = [as_graph(function) for function in engines['eager']]
    seconds = {
        engine: list(
            interleave(
                {str(index): function for index, function in enumerate(functions)}, args.repeats, 5
            ).values()
        )
        for engine, functions in engines.items()
    }
    rows = []
    for row in dict.fromkeys(name for name, _, _ in networks):
        own = [index for index, (name, _, _) in enumerate(networks) if name == row]
        line = [
            str(batch),
            precision,
            row,
            f'{statistics.mean(macs[i] for i in own) / macs[0]:.1%}',
        ]
        for engine in engines:
            times = [statistics.median(seconds[engine][i]) for i in own]
            speedups = [
                statistics.median(ratios(seconds[engine][0], seconds[engine][i])) for i in own
            ]
            line.append(f'{1000 * statistics.median(times):.3g}')
            line.append(
                f'{statistics.median(speedups):.2f} ({min(speedups):.2f}–{max(speedups):.2f})'
            )
        worst = max(networks[i][2] for i in own)
        line.append(f'{worst:.0e}' if worst <= PRECISIONS[precision] else f'**{worst:.0e}**')
        rows.append(tuple(line))
    return rows


def run(network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Inference of a copy of the network in that precision."""
    lower, inputs = copy.deepcopy(network).to(dtype), inputs.to(dtype)

    def forward() -> Tensor:
        with torch.inference_mode():
            return lower(inputs)

    return forward


def main() -> int:
    """Measures, prints the tables; returns 1 if a number is not finite or an output differs."""
    options = parser(__doc__, repeats=20)
    options.add_argument('--device', default='cuda')
    options.add_argument('--target', type=float, default=0.15, help='of the training steps')
    options.add_argument('--warmup', type=int, default=100, help='steps of STP that are not timed')
    options.add_argument('--targets', type=float, nargs='*', default=[0.55, 0.35, 0.15])
    options.add_argument('--members', type=int, default=3, help='of each budget')
    options.add_argument('--batches', type=int, nargs='*', default=[1, 64], help='of the inference')
    args = options.parse_args()
    prepare(args)
    steps = []
    for row in TRAINED:
        steps.append(step_row(argparse.Namespace(**vars(args), **row)))
        print(*steps[-1], sep=' | ', flush=True)
    inference = [
        row
        for batch in args.batches
        for precision in PRECISIONS
        for row in inference_rows(args, batch, precision)
    ]
    text = [
        environment('mmpretrain'),
        f'{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, '
        f'cuDNN {torch.backends.cudnn.version()}, TF32 in convolutions '
        f"{'on' if torch.backends.cudnn.allow_tf32 else 'off'} (PyTorch's default).",
        f'Training: random images without a data pipeline, budget {args.target:.0%}, medians of '
        f'{args.repeats} rounds after {args.warmup} steps, quartiles in brackets. Images per '
        'second are those of STP. Idle is the share of the time in which no kernel runs, while a '
        'profiler looks on. Goal: at most 1.10 times the limit.',
        markdown(
            (
                'network',
                'precision',
                'layout',
                'passes',
                'dense step, ms',
                'STP step, ms',
                'images/s',
                'idle, STP / dense',
                'ratio',
                'limit 1 + r + s',
                'over the limit',
                'dense peak, MiB',
                'STP peak, MiB',
                'ratio',
                'weights finite',
            ),
            steps,
        ),
        'Inference: ResNet-50, 224 pixels, random weights, '
        f'{args.members} members of each budget; speed-ups against the dense network in the same '
        'engine, with the range over the members. The last column is the largest difference from '
        'the active subnet in float32, relative to the largest output.',
        markdown(
            (
                'batch',
                'precision',
                'budget',
                'MACs',
                'eager, ms',
                'eager speed-up',
                'CUDA graph, ms',
                'CUDA graph speed-up',
                'difference',
            ),
            inference,
        ),
    ]
    report(args, *text)
    return int(any('**' in cell for row in inference for cell in row) or '**no**' in str(steps))


if __name__ == '__main__':
    sys.exit(main())
