"""Cuts a subnet out of a trained run: ``python tools/export.py CONFIG CHECKPOINT --out DIR``.

Without a checkpoint, as in ``python tools/export.py CONFIG --architecture uniform --out DIR``, its
weights are random: for those who want to train the small network directly.

Writes ``compact.pth`` (tensors and plain types), ``plan.json`` (their shapes), ``compact.py`` (a
config that builds and tests the network without the supernet), ``backbone.py`` (the backbone for
configs of detectors) and ``architecture.json``; then builds the network from these alone and checks
that it gives the same numbers. ``--detector`` and ``--onnx`` write more into the folder, also into
that of an export that is there already:
``python tools/export.py DIR/compact.py DIR/compact.pth --out DIR --detector …``.
"""

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger

from mmstp import Architecture
from mmstp.checkpoints import plain_loading
from mmstp.cli.exporting import export_subnet
from mmstp.cli.launch import (
    add_config_options,
    build_stp,
    check_data,
    check_work_dir,
    init_weights,
    is_export,
    load_config,
    load_search,
    tell_errors_plainly,
    whole_number,
)
from mmstp.deploy.detector_config import write_detector
from mmstp.deploy.export import check_folder
from mmstp.deploy.onnx import write_onnx
from mmstp.errors import LaunchError
from mmstp.search.budget import feasible_rows, most_uniform
from mmstp.search.budgets import find_budgets
from mmstp.stp.algorithm import STP
from mmstp.stp.pools import Pools


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of the STP run, or compact.py of an export')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='its checkpoint, or compact.pth of the export; none: untrained',
    )
    parser.add_argument('--out', required=True, help='folder for the export')
    parser.add_argument(
        '--architecture',
        help='such as "((2,3,4,2),(0.3,0.3,0.3,0.7))", or "uniform": of those that meet the budget '
        'the one whose depths and widths are most alike; default: the best found',
    )
    parser.add_argument(
        '--num-images', type=whole_number(0),
        help='training images for the statistics of norm layers, default 2000; 0 keeps those of '
        'the main network, which do not fit a subnet. A survivor has its own: there the default '
        'is 0',
    )  # fmt: skip
    parser.add_argument(
        '--detector', nargs='+', default=[],
        help='configs of detectors, such as mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py: for '
        'each a config is written in which the compact network is the backbone',
    )  # fmt: skip
    parser.add_argument(
        '--onnx', action='store_true',
        help='also write compact.onnx and backbone.onnx, and compare them with PyTorch',
    )  # fmt: skip
    parser.add_argument(
        '--budget',
        help='of a run with several, the one that is cut out: as model.target has it (0.35), or '
        'its label (35)',
    )
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    """Cuts a subnet out, or takes the one there is; then writes what else is asked for."""
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    check_folder(args.out)
    with plain_loading():
        if is_export(config):
            check_same_folder(args)
            check_work_dir(args.out, '--out')
        else:
            export(config, args)
        for detector in args.detector:
            write_detector(args.out, detector)
    if args.onnx:
        for path, file in write_onnx(args.out).items():
            logger().info(
                f'{path}: {path.stat().st_size / 2**20:.1f} MiB, differs from PyTorch by '
                f'{file.difference:.1e}; free: {", ".join(file.free) or "none"}'
            )


def check_same_folder(args: argparse.Namespace) -> None:
    """Whether config, checkpoint and output are one export's.

    Raises:
        LaunchError: If not, or if it is asked for another network.
    """
    own = Path(args.config).parent
    weights = Path(args.checkpoint).parent if args.checkpoint else own
    folders = {Path(path).resolve() for path in (args.out, own, weights)}
    if len(folders) > 1 or args.architecture or args.budget:
        raise LaunchError(
            f'{args.config} is the config of an export: its own folder is what --out has to name, '
            'and its architecture cannot be chosen anew. To cut out another subnet give config '
            'and checkpoint of the STP run'
        )
    if not args.detector and not args.onnx:
        raise LaunchError(
            f'{args.config} is the config of an export, which is written already; add --detector '
            'or --onnx'
        )


def export(config: Config, args: argparse.Namespace) -> None:
    """Loads the run and writes the subnet that is asked for."""
    if args.budget and args.architecture not in (None, 'uniform'):
        raise LaunchError(
            f'--architecture {args.architecture} is one already: leave --budget {args.budget} out'
        )
    stp = build_stp(config)
    if args.checkpoint:
        dataset_meta = load_search(stp, args.checkpoint, config)
    elif args.architecture:
        dataset_meta = {}
        init_weights(stp)
    else:
        raise LaunchError(
            'without a checkpoint nothing was searched: name the --architecture, such as uniform'
        )
    if args.num_images is None:
        args.num_images = 2000 if args.checkpoint and not stp.alone else 0
    if args.num_images:
        check_data(config, 'train_dataloader')
    architecture = chosen(stp, args.architecture, args.budget)
    check_work_dir(args.out, '--out')
    export_subnet(
        args.out, config, stp, architecture, args.num_images, args.checkpoint, dataset_meta
    )


def chosen(stp: STP, text: str | None, budget: str | None) -> Architecture:
    """The architecture that was asked for, or the best one of a budget."""
    if text not in (None, 'uniform'):
        return Architecture.of(text)
    label = label_of(stp.pools, budget)
    if text == 'uniform':
        space, cost = stp.supernet.space, stp.supernet.cost
        own = stp.pools.budgets[label]
        return most_uniform(space, feasible_rows(space, cost, own, stp.pool_size))
    pool = stp.pools[label]
    if len(pool) > 1:
        logger().warning(f'the search is not finished: the best of {len(pool)} candidates is cut')
    return pool.best


def label_of(pools: Pools, text: str | None) -> str:
    """The budget that a flag names, by its label or as ``model.target`` has it.

    Raises:
        LaunchError: If there is none, or several and none is named.
    """
    if text is None and len(pools) == 1:
        return pools.only
    named = [] if text is None else find_budgets(pools.budgets, text)
    if len(named) == 1:
        return named[0]
    if named:
        raise LaunchError(f'--budget {text} is each of {", ".join(named)}: expected one of these')
    given = 'which is to be cut out? --budget is missing' if text is None else f'--budget {text}'
    raise LaunchError(
        f"{given}: expected one of the run's budgets, {', '.join(pools)} (in percent), or as "
        'model.target has it'
    )


def logger() -> MMLogger:
    """The tool's."""
    return MMLogger.get_instance('mmstp')


if __name__ == '__main__':
    tell_errors_plainly()
    main()
