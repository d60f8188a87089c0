"""How long it takes to count the multiply-adds of architectures, and whether all counters agree.

mmstp counts every architecture of a search space from one trace, in closed form. Other counters run
or trace each network, so a search that has to know costs pays for each candidate. Measured are the
135,000 architectures of ResNet-50 by `CostModel.macs`, and one architecture by the counters of
PyTorch, mmengine and Torch-Pruning; the latter also from the dense network, with the pruning that
has to come before. All of them have to find the same multiply-adds: the script fails if they do
not. What a counter counts besides is shown apart.
"""

from __future__ import annotations

import copy
import logging
import random
import sys
import time

import torch
import torch_pruning as tp
from measure import environment, interleave, milliseconds, parser, prepare, ratios, report, spread
from measure import table as markdown
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from networks import PAPER, classifier
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmstp import Architecture, Supernet


def flop_counter(network: nn.Module, inputs: Tensor) -> int:
    """Multiply-adds by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(inputs)
    return counter.get_total_flops() // 2


def prune(supernet: Supernet, dense: nn.Module, architecture: Architecture) -> nn.Module:
    """The architecture by Torch-Pruning, out of the dense network; blocks are dropped by hand."""
    network = copy.deepcopy(dense)
    for path in supernet.space.skipped(architecture):
        parent, _, name = path.rpartition('.')
        setattr(network.get_submodule(parent), name, nn.Identity())
    graph = tp.DependencyGraph().build_dependency(network, example_inputs=supernet.inputs[0])
    modules = dict(network.named_modules())
    units = supernet.space.group_units(supernet.space.encode(architecture)[None])[0]
    for group, kept in zip(supernet.graph.groups, units, strict=True):
        layer = next((modules[path] for path in group.makers if path in modules), None)
        if kept < group.units and layer is not None:  # else the group was inside a dropped block
            dropped = list(range(int(kept), group.units))
            graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=dropped).prune()
    return network


def additions(supernet: Supernet, network: nn.Module, architecture: Architecture) -> int:
    """Elements that the residual connections add."""
    found: list[int] = []
    skipped = supernet.space.skipped(architecture)
    hooks = [
        network.get_submodule(path).register_forward_hook(
            lambda module, inputs, output: found.append(output.numel())
        )
        for stage in supernet.space.stages
        for chain in stage.chains
        for path in chain
        if path not in skipped
    ]
    with torch.no_grad():
        network(supernet.inputs[0])
    for hook in hooks:
        hook.remove()
    return sum(found)


def main() -> int:
    """Measures, prints the table and returns 1 if the counters disagree."""
    options = parser(__doc__, repeats=7)
    options.add_argument('--architecture', default=PAPER)
    options.add_argument('--size', type=int, default=224, help='of the image (default %(default)s)')
    options.add_argument(
        '--others', type=int, default=20, help='random architectures to compare besides'
    )
    args = options.parse_args()
    prepare(args)
    logging.disable(logging.WARNING)  # mmengine lists the operators that it does not count

    dense = classifier()
    inputs = torch.zeros(1, 3, args.size, args.size)
    start = time.perf_counter()
    supernet = Supernet(copy.deepcopy(dense), inputs)
    made = time.perf_counter() - start
    space, cost = supernet.space, supernet.cost
    architecture = Architecture.parse(args.architecture)
    network = supernet.export(architecture)
    on_meta, meta_inputs = copy.deepcopy(network).to('meta'), inputs.to('meta')

    functions = {
        'mmstp: the whole space': lambda: cost.macs(space.all_rows()),
        'mmstp: one architecture': lambda: cost.macs([architecture]),
        'torch.utils.flop_counter, meta device': lambda: flop_counter(on_meta, meta_inputs),
        'mmengine FlopAnalyzer': lambda: FlopAnalyzer(network, (inputs,)).total(),
        'mmengine get_model_complexity_info': lambda: get_model_complexity_info(
            network, inputs=(inputs,), show_table=False, show_arch=False
        ),
        'Torch-Pruning count_ops_and_params': lambda: tp.utils.count_ops_and_params(
            network, inputs
        ),
        'Torch-Pruning, pruning and counting': lambda: tp.utils.count_ops_and_params(
            prune(supernet, dense, architecture), inputs
        ),
    }
    seconds = interleave(functions, args.repeats)
    whole, *_ = seconds.values()

    # --- do they agree? -------------------------------------------------------------------------
    macs = int(cost.macs([architecture])[0])
    pruned = prune(supernet, dense, architecture)
    by_operator = FlopAnalyzer(network, (inputs,)).by_operator()
    by_mmengine = by_operator['conv'] + by_operator['linear']
    adds = additions(supernet, network, architecture)
    biases = sum(m.out_features for m in network.modules() if isinstance(m, nn.Linear))
    total_by_tp, macs_by_tp = {}, {}
    for name, counted in (('exported', network), ('pruned', pruned)):
        total, _, layers, _ = tp.utils.count_ops_and_params(counted, inputs, layer_wise=True)
        total_by_tp[name] = int(total)
        of_layers = (layers[m] for m in counted.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        macs_by_tp[name] = int(sum(of_layers)) - biases
    pytorch = flop_counter(on_meta, meta_inputs)
    of_mmengine = sum(by_operator.values())
    other_operators = ', '.join(
        f'{name} {count:,}' for name, count in by_operator.items() if name not in ('conv', 'linear')
    )
    of_tp = 'norm 2 per element, activation and pooling 1, bias 1'
    counts = [  # total in multiply-adds, of it convolutions and linear layers, what else is in it
        (None, None, ''),
        (macs, macs, ''),
        (pytorch, pytorch, 'counts 2 per multiply-add; halved here'),
        (of_mmengine, by_mmengine, other_operators),
        (of_mmengine, by_mmengine, 'the same'),
        (total_by_tp['exported'], macs_by_tp['exported'], of_tp),
        (total_by_tp['pruned'], macs_by_tp['pruned'], 'the same; blocks dropped by hand'),
    ]
    rng = random.Random(args.seed)
    others = [space.sample(rng) for _ in range(args.others)]
    by_pytorch = [flop_counter(supernet.export(a).to('meta'), meta_inputs) for a in others]
    # the convention of ptflops, on which Torch-Pruning's is built, counts the additions too
    ptflops = int(cost.macs([architecture], 'ptflops')[0])
    agree = all(count in (None, macs) for _, count, _ in counts)
    agree &= list(cost.macs(others)) == by_pytorch
    agree &= all(total + adds == ptflops for total in total_by_tp.values())

    # --- the table ------------------------------------------------------------------------------
    rows = []
    for (name, taken), (total, count, note) in zip(seconds.items(), counts, strict=True):
        per_architecture = [w / space.size for w in whole]
        rows.append(
            (
                f'{name} ({space.size:,})' if taken is whole else name,
                spread(milliseconds(taken), '.3g'),
                '1' if taken is whole else f'{spread(ratios(taken, per_architecture), ",.0f")}',
                '' if total is None else f'{total:,}',
                '' if count is None else f'{count:,}' + (' ✓' if count == macs else ' **differs**'),
                note,
            )
        )
    report(
        args,
        environment('mmengine', 'mmpretrain', 'torch-pruning'),
        f'ResNet-50, {args.size} pixels, {space.size:,} architectures; the one is '
        f'`{architecture}`, already cut out except in the last row. Medians of {args.repeats} '
        'rounds, quartiles in brackets. The ratio is the time per architecture over that of the '
        'first row.',
        markdown(
            (
                'counter',
                'ms',
                'per architecture, ratio',
                'its count',
                'convolutions and linear layers',
                'what else it counts',
            ),
            rows,
        ),
        f'Before its first count mmstp traces and verifies the network, once: {made:.1f} s here. '
        + (
            f'All counters agree, {len(others)} random architectures by '
            'torch.utils.flop_counter included; Torch-Pruning’s total is '
            f"`macs(..., 'ptflops')` = {ptflops:,} less the {adds:,} additions of the residual "
            'connections, which it does not see.'
            if agree
            else '**The counters disagree.**'
        ),
    )
    return 0 if agree else 1


if __name__ == '__main__':
    sys.exit(main())
