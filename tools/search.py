"""Finds a subnet of any budget in a trained main network, without training.

``python tools/search.py CONFIG CHECKPOINT --target 0.42 --out DIR``

CONFIG is that of an STP run, CHECKPOINT one that still has its main network: of a run without the
survivor phase, or of the search before it. Without a checkpoint the main network is the dense one
that ``model.pretrained`` of the config names. Architectures that meet the budget are screened by
their distance to the main network (Eq. 8); the nearest are evaluated by it with norm statistics of
their own, the better half on twice as many images, and so on. A table shows these.
With ``--out`` the best is written there as ``tools/export.py`` does.
"""

import argparse
import math
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from mmstp.checkpoints import plain_loading
from mmstp.cli.exporting import check_images, export_subnet
from mmstp.cli.launch import (
    add_config_options,
    build_stp,
    check_data,
    check_work_dir,
    init_weights,
    load_config,
    load_search,
    tell_errors_plainly,
    whole_number,
)
from mmstp.config_fields import default_of
from mmstp.deploy.export import check_folder
from mmstp.errors import LaunchError
from mmstp.search.budget import Budget
from mmstp.stp.algorithm import STP
from mmstp.stp.halving import Evaluated, halve, propose


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the STP run')
    parser.add_argument(
        'checkpoint', nargs='?',
        help='its checkpoint; none: the dense network of model.pretrained',
    )  # fmt: skip
    parser.add_argument(
        '--target', nargs='+', type=limit, required=True,
        help="the budget, as model.target has it: a number, which the config's metric counts, or "
        'one or several by metric, such as latency=0.5 params=0.4',
    )  # fmt: skip
    parser.add_argument('--out', help='folder for the export; none: it is only searched')
    parser.add_argument(
        '--data', choices=['train', 'val'], default='train',
        help='the images to evaluate on, without their labels (default %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--screened', type=whole_number(1), default=1000,
        help='how many architectures are screened (default %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--candidates', type=whole_number(1), default=32,
        help='how many of them are evaluated (default %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--images', type=whole_number(1), default=256,
        help='for the screening, and the first round of the evaluation (default %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--num-images', type=whole_number(0), default=2000,
        help='of --out: training images for the statistics of norm layers (default %(default)s)',
    )  # fmt: skip
    add_config_options(parser)
    return parser.parse_args()


def limit(text: str) -> tuple[str, float]:
    """A number, with its metric if there is one."""
    metric, _, number = text.rpartition('=')
    try:
        return metric, float(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'{text!r}: expected a number, such as 0.42, or metric=number'
        ) from error


def main() -> None:
    """Searches, shows what was found, writes the best."""
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    target = target_of(args.target)
    metric, tolerance = (
        config.model.get(name, default_of(STP, name)) for name in ('metric', 'tolerance')
    )
    fields = ('train_dataloader', f'{args.data}_dataloader')
    if config.get(fields[1]) is None:
        raise LaunchError(f'--data {args.data}: the config has no {fields[1]}')
    check_data(config, *fields)
    if args.out:
        check_folder(args.out)
    with plain_loading():
        stp, dataset_meta = load_main_network(config, args.checkpoint)
        space, cost = stp.supernet.space, stp.supernet.cost
        budget = Budget.of(target, metric, tolerance, space, cost, '--target')
        if args.out:
            check_work_dir(args.out, '--out')
        loaders = [Runner.build_dataloader(config[field]) for field in fields]
        check_images(loaders[0], stp)
        stp.to(get_device())
        propose(stp, budget, loaders[0], args.screened, args.candidates, args.images)
        found = halve(stp, list(stp.pool.scores), *loaders, args.images)
        print(table(stp, budget, found))
        if args.out:
            stp.to('cpu')  # where it is compared with what its files build
            best = found[0].architecture
            export_subnet(
                args.out, config, stp, best, args.num_images, args.checkpoint, dataset_meta
            )


def load_main_network(config: Config, checkpoint: str | None) -> tuple[STP, dict[str, Any]]:
    """The algorithm with the main network of an STP run, or a dense one.

    Returns:
        Beside it what the run noted of its data.

    Raises:
        LaunchError: If there is no main network, or it is gone.
    """
    if checkpoint is None:
        if config.model.get('pretrained') is None:
            raise LaunchError(
                'no main network: give a checkpoint of the STP run, or one of a dense network with '
                '--cfg-options model.pretrained=FILE'
            )
        stp = build_stp(config)
        init_weights(stp)
        return stp, {}
    stp = build_stp(config)
    dataset_meta = load_search(stp, checkpoint, config)
    if stp.alone:
        raise LaunchError(
            f'checkpoint {checkpoint!r} is of the survivor phase: {stp.pools.all_best} trained '
            'alone there, and the main network that other subnets are part of is gone. Give a '
            'checkpoint of the search (before PoolHook.end), or of a run with model.survivor=False'
        )
    return stp, dataset_meta


def target_of(limits: list[tuple[str, float]]) -> float | dict[str, float]:
    """The budget, as ``model.target`` has it.

    Raises:
        LaunchError: If a number has no metric beside others, or two have the same.
    """
    by_metric = dict(limits)
    if len(by_metric) < len(limits) or ('' in by_metric and len(limits) > 1):
        given = ' '.join(
            f'{metric}={number}' if metric else f'{number}' for metric, number in limits
        )
        raise LaunchError(
            f'--target {given}: expected one number, or one for each of several metrics, such as '
            'macs=0.35 params=0.4'
        )
    return by_metric.get('', by_metric)


def table(stp: STP, budget: Budget, found: list[Evaluated]) -> str:
    """What was evaluated, the best first; a row for each with its last round."""
    architectures = [one.architecture for one in found]
    cost, largest = stp.supernet.cost, stp.supernet.space.largest
    metrics = list(dict.fromkeys(['macs', *(limit.metric for limit in budget.limits)]))
    ratios = [cost.count(architectures, name) / cost.count(largest, name) for name in metrics]
    width = max(len(str(architecture)) for architecture in architectures)
    names = ''.join(f'{name:>13}' for name in metrics)
    lines = [f'{"architecture":{width}}{names}  screened  images  distance  behind the best']
    for one, *own in zip(found, *ratios, strict=True):
        costs = ''.join(f'{ratio:13.2%}' for ratio in own)
        error = '' if math.isnan(one.error) else f' ± {one.error:.4f}'
        lines.append(
            f'{one.architecture!s:{width}}{costs}{stp.pool.scores[one.architecture]:10.4f}'
            f'{one.images:8}{one.distance:10.4f}  {one.behind:.4f}{error}'
        )
    return '\n'.join(lines)


if __name__ == '__main__':
    tell_errors_plainly()
    main()
