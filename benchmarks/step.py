"""What a training step of STP costs against a step of ordinary training of the same classifier.

A step of STP runs the main network, a target subnet and a support subnet, forward and backward. If
time followed the multiply-adds and nothing else cost any, it would take ``1 + r + s`` dense steps,
where r and s are the shares of the two subnets: the proportional limit. Both shares are counted for
the architectures that were drawn in this very run, round by round (their means estimate r and
E[r_support]). The other yardstick are static networks of these architectures, cut out and trained
beside the dense one: narrow layers use a processor less well than their multiply-adds say, and a
subnet cannot be quicker than the network that it would be alone. Steps are forward, backward, SGD
with momentum and zeroing the gradients, on random images without a data pipeline, by MMEngine's
``OptimWrapper`` or, at a lower precision, its ``AmpOptimWrapper``. The goal is at most 1.10 times
the limit.

Memory is the peak of three steps above what the built model takes, each kind of step in a process
of its own: gradients, momenta and activations. On the CPU it is resident memory, on CUDA what
PyTorch's allocator handed out.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import environment, interleave, parser, prepare, ratios, report, spread
from measure import table as markdown
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmpretrain.structures import DataSample
from networks import BACKBONES, classifier
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmstp import STP, Architecture
from mmstp.stp.passes import PASSES

LOWER = ('bfloat16', 'float16')
LAYOUTS = ('contiguous_format', 'channels_last')


def stepper(model: nn.Module, args: argparse.Namespace, update: bool = True) -> Callable[[], None]:
    """One training step of a classifier or of STP around one; or its passes alone."""
    layout = getattr(torch, args.layout)
    model.to(args.device, memory_format=layout).train()
    inputs = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    inputs = inputs.contiguous(memory_format=layout)
    labels = torch.randint(args.classes, (args.batch,)).tolist()
    samples = [DataSample().set_gt_label(label).to(args.device) for label in labels]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    optimizing = (
        AmpOptimWrapper(optimizer=optimizer, dtype=args.precision)
        if args.precision in LOWER
        else OptimWrapper(optimizer=optimizer)
    )

    def step() -> None:
        with optimizing.optim_context(model):
            loss, _ = model.parse_losses(model(inputs, samples, mode='loss'))
        if update:
            optimizing.update_params(loss)
        else:
            optimizing.backward(loss)
            optimizing.zero_grad()

    return step


def algorithm(dense: nn.Module, args: argparse.Namespace) -> STP:
    """STP with the paper's settings."""
    shape = (3, args.size, args.size)
    stp = STP(
        dense, target=args.target, input_shape=shape, passes=args.passes, pool=dict(seed=args.seed)
    )
    if args.streams:
        on_streams(stp)
    return stp


def on_streams(stp: STP) -> None:
    """From now on target and support subnet run on CUDA streams of their own (Appendix F).

    Neither waits for the main network's pass, which is queued before: all that they read was there
    when the step began. Their backward passes run where the forward passes did.
    """
    forward, outputs = stp.forward, stp.task.outputs
    streams = itertools.cycle([torch.cuda.Stream(), torch.cuda.Stream()])
    began = torch.cuda.Event()

    def begun(*args: Any, **kwargs: Any) -> Any:
        began.record()
        return forward(*args, **kwargs)

    def aside(model: nn.Module, inputs: Tensor) -> Tensor:
        stream, current = next(streams), torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            stream.wait_event(began)
            found = outputs(model, inputs)
        current.wait_stream(stream)
        found.record_stream(current)
        return found

    stp.forward, stp.task.outputs = begun, aside  # type: ignore[method-assign]


def record(stp: STP, drawn: list[Architecture]) -> None:
    """From now on the architectures that are activated are appended to ``drawn``."""
    activate = stp.supernet.activate

    def recording(architecture: Architecture) -> AbstractContextManager[nn.Module]:
        drawn.append(architecture)
        return activate(architecture)

    stp.supernet.activate = recording  # type: ignore[method-assign]


@dataclass(frozen=True)
class Steps:
    """Seconds of steps of STP and of ordinary training in turns, round by round.

    Attributes:
        stp: Of STP.
        dense: Of ordinary training.
        target: The target subnets' shares of the multiply-adds.
        support: The support subnets'.
        pool: How many architectures there are.
        finite: Whether all weights are afterwards.
        static: What a dense step and the passes of the two subnets, cut out, take, in dense steps;
            round by round, if asked for.
        idle: The share of a step of STP in which no kernel runs, and of a dense one; on CUDA.
        compiled: Seconds of ordinary training with a compiled backbone; if asked for.
    """

    stp: list[float]
    dense: list[float]
    target: NDArray[np.float64]
    support: NDArray[np.float64]
    pool: int
    finite: bool
    static: list[float]
    idle: tuple[float, float] | None
    compiled: list[float] = field(default_factory=list)

    @property
    def limit(self) -> NDArray[np.float64]:
        """What a step would cost if time followed the multiply-adds, in dense steps."""
        return 1 + self.target + self.support


def measure(args: argparse.Namespace, static: bool = False) -> Steps:
    """Steps of STP and of ordinary training, of networks that are gone afterwards.

    Args:
        args: The command line.
        static: Whether to measure static networks too.
    """
    dense = classifier(args.network, args.classes)
    stp = algorithm(copy.deepcopy(dense).to(args.device), args)
    drawn: list[Architecture] = []
    record(stp, drawn)
    steps = {'stp': stepper(stp, args), 'dense': stepper(dense, args)}
    if args.compile:
        compiled = copy.deepcopy(dense)
        compiled.backbone.compile()
        steps['compiled'] = stepper(compiled, args)
    for _ in range(args.warmup):
        steps['stp']()
    seconds = interleave(steps, args.repeats, warmup=3)
    cost = stp.supernet.cost
    # the main network, the target subnet and the support subnet of every timed step
    timed = drawn[-3 * args.repeats :]
    main, target, support = np.reshape(cost.macs(timed), (-1, 3)).T
    assert (main == cost.macs([stp.supernet.space.largest])).all()
    return Steps(
        **seconds,
        target=target / main,
        support=support / main,
        pool=len(stp.pool),
        finite=all(bool(p.isfinite().all()) for p in stp.parameters()),
        static=[
            static_step(steps['dense'], [stp.export(one) for one in timed[at + 1 : at + 3]], args)
            for at in range(0, static * len(timed), 3)
        ],
        idle=(idle_share(steps['stp']), idle_share(steps['dense']))
        if args.device.startswith('cuda')
        else None,
    )


def static_step(
    dense: Callable[[], None], subnets: list[nn.Module], args: argparse.Namespace
) -> float:
    """What a dense step and the passes of subnets take together, in dense steps."""
    passes = {str(i): stepper(subnet, args, update=False) for i, subnet in enumerate(subnets)}
    seconds = interleave({'dense': dense, **passes}, repeats=3, warmup=2)
    total = [sum(times) for times in zip(*seconds.values(), strict=True)]
    return statistics.median(ratios(total, seconds['dense']))


def idle_share(step: Callable[[], None], repeats: int = 5) -> float:
    """The share of the time of some steps in which no kernel runs on the device."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    busy = end = 0.0
    for span in sorted(
        (event.time_range for event in profiler.events() if event.device_type == DeviceType.CUDA),
        key=lambda span: span.start,
    ):
        busy += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return 1 - busy / 1e6 / seconds


def peak_memory(kind: str, args: argparse.Namespace) -> int:
    """Bytes that three steps need on top of the model; to be called in a fresh process."""
    model = classifier(args.network, args.classes)
    step = stepper(algorithm(model, args) if kind == 'stp' else model, args)
    if args.device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        gc.collect()
        # forget the mark that building the model left
        Path('/proc/self/clear_refs').write_text('5')
        before = _status('VmRSS')
    for _ in range(3):
        step()
    if args.device.startswith('cuda'):
        return torch.cuda.max_memory_allocated() - before
    return _status('VmHWM') - before


def _status(field: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ':'))


def peaks(args: argparse.Namespace) -> Iterator[int]:
    """`peak_memory` of STP and of ordinary training."""
    for kind in ('stp', 'dense'):
        options = [f'--{name}={getattr(args, name)}' for name in (
            'network', 'classes', 'size', 'batch', 'target', 'device', 'precision', 'threads',
            'seed', 'passes', 'layout',
        )]  # fmt: skip
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', __file__, '--peak-memory', kind, *options]
            + ['--streams'] * args.streams,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            # freed tensors go back to the system at once, not to a heap that hides them
            env={**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536'},
        )
        yield int(done.stdout.split()[-1])


def main() -> None:
    """Measures and prints the tables."""
    options = parser(__doc__, repeats=30)
    options.add_argument('--network', choices=BACKBONES, default='resnet50')
    options.add_argument('--classes', type=int, default=1000)
    options.add_argument('--size', type=int, default=64, help='of the images (default %(default)s)')
    options.add_argument('--batch', type=int, default=16, help='default %(default)s')
    options.add_argument('--target', type=float, default=0.15, help='budget (default %(default)s)')
    options.add_argument('--device', default='cpu')
    options.add_argument('--precision', choices=('float32', *LOWER), default='float32')
    options.add_argument(
        '--warmup', type=int, default=0, help='steps of STP before (default %(default)s)'
    )
    options.add_argument(
        '--passes', choices=PASSES, default='together', help='backward passes (default %(default)s)'
    )
    options.add_argument(
        '--layout', choices=LAYOUTS, default=LAYOUTS[0], help='of images and weights'
    )
    options.add_argument(
        '--streams', action='store_true', help='subnets on CUDA streams of their own'
    )
    options.add_argument(
        '--compile', action='store_true', help='also time ordinary training by torch.compile'
    )
    options.add_argument('--peak-memory', choices=('stp', 'dense'), help=argparse.SUPPRESS)
    args = options.parse_args()
    prepare(args)
    if args.peak_memory:
        print(peak_memory(args.peak_memory, args))
        return
    peak_stp, peak_dense = peaks(args)

    steps = measure(args, static=True)
    a, b, limit = steps.stp, steps.dense, steps.limit
    report(
        args,
        environment('mmpretrain'),
        f'{args.network}, {args.classes} classes, {args.size} pixels, batch {args.batch}, '
        f'{args.device}, {args.precision}, {args.layout}, budget {args.target:.0%}, passes '
        f'{args.passes}{", streams" * args.streams}, {steps.pool} architectures in the pool. '
        f'Medians of {args.repeats} rounds, quartiles in brackets. '
        'Goal: at most 1.10 times the limit.',
        markdown(
            ('', 'STP', 'ordinary training', 'ratio'),
            [
                (
                    'step',
                    f'{1000 * statistics.median(a):.4g} ms',
                    f'{1000 * statistics.median(b):.4g} ms',
                    spread(ratios(a, b)),
                ),
                (
                    'limit 1 + r + s',
                    f'r = {steps.target.mean():.3f}, s = {steps.support.mean():.3f}',
                    '1',
                    f'{limit.mean():.2f}',
                ),
                ('step over its limit', '', '', f'**{spread(ratios(ratios(a, b), limit))}**'),
                *(
                    [('ordinary training, compiled', '', '', spread(ratios(steps.compiled, b)))]
                    if steps.compiled
                    else []
                ),
                ('the three networks, static', '', '', spread(steps.static)),
                (
                    'step over these',
                    '',
                    '',
                    f'**{statistics.median(ratios(a, b)) / statistics.median(steps.static):.2f}**',
                ),
                (
                    'total time over total limit',
                    '',
                    '',
                    f'{sum(a) / sum(b) / limit.mean():.2f}',
                ),
                (
                    'peak memory of steps',
                    f'{peak_stp / 2**20:,.0f} MiB',
                    f'{peak_dense / 2**20:,.0f} MiB',
                    f'{peak_stp / peak_dense:.2f}',
                ),
            ],
        ),
    )


if __name__ == '__main__':
    main()
