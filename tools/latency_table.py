"""Measures networks of a space on a device: ``python tools/latency_table.py CONFIG --out FILE``.

Some dozens of subnets are cut out, run in turn with the dense network, and written to a
``latency.json``; the latency of all others follows from these (``docs/latency.md``). Neither data
nor weights are needed. A run that was interrupted goes on where it was. The file is for
``model=dict(metric='latency', latency='latency.json', …)``.
"""

import argparse
import datetime
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import MMLogger

from mmstp.cli.launch import (
    add_config_options,
    load_config,
    tell_errors_plainly,
    whole_number,
)
from mmstp.cli.search_config import supernet_of
from mmstp.deploy.timing import BACKENDS, Setting
from mmstp.errors import LatencyError
from mmstp.search.latency_fit import FEWEST
from mmstp.search.latency_table import LatencyTable, refuse_other, to_measure
from mmstp.stp.latency import warn_of_doubts
from mmstp.stp.two_stages import dense_part
from mmstp.subnets.supernet import Supernet


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of an STP run')
    parser.add_argument('--out', default='latency.json', help='default %(default)s')
    parser.add_argument('--backend', choices=list(BACKENDS), default='onnxruntime')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--batch', type=whole_number(1), default=1, help='images at once')
    parser.add_argument('--threads', type=whole_number(1), default=1, help='of the CPU')
    parser.add_argument('--half', action='store_true', help='half precision, of torch')
    parser.add_argument('--compile', action='store_true', help='torch.compile, of torch')
    parser.add_argument(
        '--channels-last', action='store_true', help='layout of images and weights, of torch'
    )
    parser.add_argument('--graph', action='store_true', help='a CUDA graph, of torch on cuda')
    parser.add_argument(
        '--networks', type=whole_number(FEWEST), default=64,
        help=f'how many are measured, at least {FEWEST} (default %(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--rounds', type=whole_number(1), default=20, help='runs of each (default %(default)s)'
    )
    parser.add_argument(
        '--together', type=whole_number(1), default=8,
        help='networks that take turns with the dense one (default %(default)s)',
    )  # fmt: skip
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    """Measures what is missing in the file."""
    args = parse_args()
    setting = Setting(**{one.name: getattr(args, one.name) for one in fields(Setting)})
    supernet = supernet_of(load_config(args.config, args.cfg_options))
    out = Path(args.out)
    table = begun(out, setting, supernet)
    space = supernet.space
    wanted = [space.decode(row) for row in to_measure(space, supernet.cost.macs, args.networks)]
    left = [architecture for architecture in wanted if str(architecture) not in table.ratios]
    logger().info(f'{out}: {len(left)} of {len(wanted)} networks to measure; {table}')
    images = torch.randn(args.batch, *supernet.inputs[0].shape[1:])

    def runner(architecture):
        return setting.runner(dense_part(supernet.export(architecture)), images)

    dense, begun_at = runner(space.largest) if left else None, time.monotonic()
    for start in range(0, len(left), args.together):
        group = left[start : start + args.together]
        seconds = setting.seconds([dense, *map(runner, group)], args.rounds)
        ratios = np.median(seconds[:, 1:] / seconds[:, :1], axis=0)
        table.dense_ms.append(1000 * float(np.median(seconds[:, 0])))
        table.ratios |= dict(zip(map(str, group), ratios.tolist(), strict=True))
        table.write(out)
        done = start + len(group)
        minutes = (time.monotonic() - begun_at) * (len(left) - done) / done / 60
        logger().info(
            f'{done} of {len(left)}: {table.dense_ms[-1]:.2f} ms the dense network, '
            f'{ratios.min():.1%} to {ratios.max():.1%} of it the others; {minutes:.1f} minutes left'
        )
    supernet.cost.use_latency(table)
    low, high = supernet.cost.latency([space.smallest, space.largest])
    logger().info(f'{out}: {low:.3g} to {high:.3g} ms; {supernet.cost.latency_fit}')
    warn_of_doubts(supernet.cost.latency_fit, str(out))


def begun(out: Path, setting: Setting, supernet: Supernet) -> LatencyTable:
    """The table in the file, if it is of the same setting and space; else an empty one."""
    described, space = setting.described(), supernet.cost.described()
    if not out.exists():
        return LatencyTable(described, space, str(datetime.date.today()))
    try:
        table = LatencyTable.read(out)
        refuse_other('setting', table.setting, described)
        refuse_other('network or space', table.space, space)
    except LatencyError as error:
        raise LatencyError(f'--out {out} is kept: {error}. Give another --out') from None
    return table


def logger() -> MMLogger:
    """The tool's."""
    return MMLogger.get_instance('mmstp')


if __name__ == '__main__':
    tell_errors_plainly()
    main()
