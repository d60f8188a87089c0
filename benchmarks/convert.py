"""How long it takes to make a supernet of a network, beside Torch-Pruning's dependency graph.

A supernet is traced, analysed, verified against its trace on random weights, and has a cost model
of all its architectures. The dependency graph holds coupled layers alone. The two take turns on
the same network of torchvision. What Torch-Pruning cannot follow is given with its error.
"""

from __future__ import annotations

import sys

import torch
import torch_pruning as tp
from measure import environment, interleave, parser, prepare, ratios, report, spread, table
from torchvision import models

from mmstp import Supernet

NETWORKS = {
    'resnet50': 224, 'mobilenet_v3_large': 224, 'densenet121': 224, 'convnext_tiny': 224,
    'vit_b_16': 224, 'swin_t': 224, 'maxvit_t': 224,
}  # fmt: skip
GOALS = {'resnet50': 2.0}
GOAL = 20.0


def main() -> int:
    """Measures and prints the table; returns 0."""
    args = parser(__doc__, repeats=5).parse_args()
    prepare(args)
    rows = []
    for name, size in NETWORKS.items():
        inputs = torch.zeros(1, 3, size, size)

        def supernet(name: str = name, inputs: torch.Tensor = inputs) -> None:
            Supernet(models.get_model(name, weights=None).eval(), inputs)

        def dependencies(name: str = name, inputs: torch.Tensor = inputs) -> None:
            model = models.get_model(name, weights=None).eval()
            tp.DependencyGraph().build_dependency(model, example_inputs=inputs)

        def build(name: str = name) -> None:
            models.get_model(name, weights=None).eval()

        functions = {'supernet': supernet, 'build': build}
        failure = ''
        try:
            dependencies()
            functions['dependencies'] = dependencies
        except Exception as error:  # whatever it raises about an operator
            failure = f'{type(error).__name__}: {str(error)[:60]}'
        seconds = interleave(functions, args.repeats)
        own = [a - b for a, b in zip(seconds['supernet'], seconds['build'], strict=True)]
        beside, ratio = failure, ''
        if not failure:
            theirs = [a - b for a, b in zip(seconds['dependencies'], seconds['build'], strict=True)]
            beside, ratio = spread(theirs), spread(ratios(own, theirs))
        rows.append((name, spread(own), f'≤ {GOALS.get(name, GOAL):g}', beside, ratio))
    report(
        args,
        environment('torchvision', 'torch-pruning'),
        f'Seconds, without building the network; medians of {args.repeats} rounds, quartiles in '
        'brackets. 224 pixels.',
        table(
            ('network', 'mmstp.Supernet', 'goal', "Torch-Pruning's graph", 'ratio'),
            rows,
        ),
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
