"""Cuts a subnet out of a trained run: ``python tools/export.py CONFIG CHECKPOINT --out DIR``.

Writes ``compact.pth`` (tensors and plain types), ``compact.py`` (a config that builds and tests it
without the supernet) and ``architecture.json``; then builds the network from these alone and checks
that it gives the same numbers.
"""

import argparse

from mmengine.logging import MMLogger
from mmengine.runner import Runner

from mmstp import Architecture
from mmstp.export import max_abs_difference, reload, write_export
from mmstp.hooks import calibrate_on
from mmstp.launch import (
    add_config_options,
    build_stp,
    check_data,
    check_work_dir,
    load_config,
    load_search,
)


def main() -> None:
    """Loads the run, cuts, estimates statistics, writes and reloads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the STP run')
    parser.add_argument('checkpoint', help='checkpoint of the STP run')
    parser.add_argument('--out', required=True, help='folder for the export')
    parser.add_argument(
        '--architecture', help='such as "((2,3,4,2),(0.3,0.3,0.3,0.7))"; default: the best found'
    )
    parser.add_argument(
        '--num-images', type=int, default=2000,
        help='training images for the statistics of norm layers; 0 keeps those of the main '
        'network, which do not fit a subnet',
    )  # fmt: skip
    add_config_options(parser)
    args = parser.parse_args()
    logger = MMLogger.get_instance('mmstp')
    config = load_config(args.config, args.cfg_options)
    check_work_dir(args.out)
    if args.num_images:
        check_data(config, 'train_dataloader')
    stp = build_stp(config)
    load_search(stp, args.checkpoint)
    architecture = Architecture.parse(args.architecture) if args.architecture else stp.pool.best
    if not args.architecture and len(stp.pool) > 1:
        logger.warning(f'the search is not finished: the best of {len(stp.pool)} candidates is cut')
    network = stp.export(architecture)
    if args.num_images:
        dataloader = Runner.build_dataloader(config.train_dataloader)
        number = min(args.num_images, len(dataloader.dataset))
        logger.info(f'estimating the statistics of norm layers on {number} images')
        calibrate_on(network, dataloader, args.num_images)
    description = write_export(args.out, network, config, stp, architecture)
    difference = max_abs_difference(network, reload(args.out), stp.supernet.inputs[0].shape)
    logger.info(
        f'{args.out}: {description["architecture"]}, {description["macs_ratio"]:.2%} of the MACs, '
        f'{description["params_ratio"]:.2%} of the parameters; reloaded from its config and '
        f'weights it differs by {difference}'
    )
    if difference != 0:
        raise RuntimeError(f'the reloaded network differs by {difference}')


if __name__ == '__main__':
    main()
