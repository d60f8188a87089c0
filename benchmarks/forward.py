"""What it costs to run a subnet inside its supernet instead of cut out.

A dynamic layer runs its own forward on narrower views of its weights. Where the views are not
contiguous (input channels are left out), PyTorch's operators copy them, and every property read
takes a little Python: a constant per layer, so it shows at batch 1 and fades with the work. While
nothing is active, the supernet should cost what the dense network costs. Measured are a subnet's
forward (activation included) over the exported subnet's, the same for the largest architecture and
for none over the plain dense network, and what activating an architecture for the first time and
again takes. Outputs have to be equal; the script fails if they are not within 1e-4 (relative to the
largest logit).

The goal is a ratio of at most 1.10.
"""

from __future__ import annotations

import copy
import random
import statistics
import sys
from collections.abc import Callable

import torch
from measure import environment, interleave, milliseconds, parser, prepare, ratios, report, spread
from measure import table as markdown
from networks import BACKBONES, PAPER, classifier
from torch import Tensor, nn

from mmstp import Architecture, Supernet


def main() -> int:
    """Measures, prints the tables and returns 1 if an output differs."""
    options = parser(__doc__, repeats=25)
    options.add_argument('--network', choices=BACKBONES, default='resnet50')
    options.add_argument('--size', type=int, default=224, help='of the image (default %(default)s)')
    options.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    options.add_argument('--architecture', action='append', help='instead of the usual ones')
    options.add_argument('--device', default='cpu')
    args = options.parse_args()
    prepare(args)

    dense = classifier(args.network).to(args.device)
    model = copy.deepcopy(dense)
    example = torch.zeros(1, 3, args.size, args.size, device=args.device)
    supernet = Supernet(model, example)
    space, cost = supernet.space, supernet.cost
    if args.architecture:
        chosen = [Architecture.parse(text) for text in args.architecture]
    else:
        depths = space.largest.depths
        uniform = [Architecture(depths, (w,) * len(depths)) for w in (0.5, 0.7)]
        papers = [Architecture.parse(PAPER)] if args.network == 'resnet50' else []
        chosen = [space.smallest, *papers, *uniform]

    # --- the first activation works the plan out, later ones look it up -------------------------
    rng = random.Random(args.seed)
    unseen = iter([space.sample(rng) for _ in range(args.repeats + 1)])

    def activate(architecture: Architecture) -> None:
        with supernet.activate(architecture):
            pass

    activations = interleave(
        {'first': lambda: activate(next(unseen)), 'again': lambda: activate(chosen[0])},
        args.repeats,
    )

    # --- forward --------------------------------------------------------------------------------
    def run(network: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
        return lambda: network(inputs)

    def run_active(architecture: Architecture, inputs: Tensor) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            with supernet.activate(architecture):
                return model(inputs)

        return forward

    whole = int(cost.macs([space.largest])[0])
    rows, equal = [], True
    with torch.no_grad():
        for batch in args.batch:
            inputs = torch.randn(batch, 3, args.size, args.size, device=args.device)
            pairs = [
                (f'`{a}`', int(cost.macs([a])[0]), run_active(a, inputs), supernet.export(a))
                for a in chosen
            ]
            pairs.append(('the largest', whole, run_active(space.largest, inputs), dense))
            pairs.append(('none active', whole, run(model, inputs), dense))
            for name, macs, dynamic, static in pairs:
                expected = run(static, inputs)()
                gap = float((dynamic() - expected).abs().max())
                equal &= gap <= 1e-4 * float(expected.abs().max())
                a, b = interleave(
                    {'dynamic': dynamic, 'static': run(static, inputs)}, args.repeats, warmup=2
                ).values()
                rows.append(
                    (
                        batch,
                        name,
                        f'{macs / whole:.1%}',
                        f'{1000 * statistics.median(a):.3g}',
                        f'{1000 * statistics.median(b):.3g}',
                        spread(ratios(a, b)),
                        f'{gap:.1e}' if gap else '0',
                    )
                )
    report(
        args,
        environment('mmpretrain'),
        f'{args.network}, {args.size} pixels, {args.device}, eval mode, random weights. Medians of '
        f'{args.repeats} rounds, quartiles in brackets. The static network is the exported subnet; '
        'for the last two of each batch, the plain dense network. Goal: a ratio of at most 1.10.',
        markdown(
            ('batch', 'active', 'MACs', 'dynamic, ms', 'static, ms', 'ratio', 'largest difference'),
            rows,
        ),
        'To activate an architecture takes '
        f'{spread(milliseconds(activations["first"]), ".2g", " ms")} the first time and '
        f'{spread(milliseconds(activations["again"]), ".2g", " ms")} again.'
        + ('' if equal else ' **The outputs differ.**'),
    )
    return 0 if equal else 1


if __name__ == '__main__':
    sys.exit(main())
