"""Prunes a slim ResNet-50 to 15 % of its MACs on handwritten digits, end to end.

``make demo`` installs what it needs and runs it. ``--baselines`` adds what the result has to be
compared with: the same compact network trained directly, and the dense one pruned by L1 norm.
"""

import argparse
import copy
import io
import json
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

warnings.filterwarnings('ignore', 'Fail to import')  # mmcv without compiled operators

import torch  # noqa: E402
from analysis_tools.plot_pool import plot_pool  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from torch import nn  # noqa: E402

from mmstp import Architecture, Supernet  # noqa: E402
from mmstp.atomic_files import write_json  # noqa: E402
from mmstp.cli.launch import check_work_dir, load_config  # noqa: E402
from mmstp.deploy.export import check_folder, max_abs_difference, reload, write_export  # noqa: E402
from mmstp.stp.hooks.statistics import calibrate_on  # noqa: E402
from mmstp.stp.of_runner import stp_of  # noqa: E402

_SHOWN = 'loss loss_ce loss_target loss_support loss_cls loss_bbox loss_mask pool_size'.split()
ROOT = Path(__file__).resolve().parents[1]


class Progress(Hook):
    """One line per epoch."""

    priority = 'VERY_LOW'

    def __init__(self, title: str) -> None:
        self.title = title
        self.start = time.perf_counter()
        self.shown_on = sys.stdout

    def after_train_epoch(self, runner: Runner) -> None:
        hub = runner.message_hub
        shown = [f'{self.title}: epoch {runner.epoch + 1:2d}/{runner.max_epochs}']
        for key in _SHOWN:
            if f'train/{key}' in hub.log_scalars:
                value = hub.get_scalar(f'train/{key}').current()
                shown.append(f'{key} {value:.3f}' if key != 'pool_size' else f'{key} {value:.0f}')
        shown.append(f'{time.perf_counter() - self.start:.0f} s')
        print(' | '.join(shown), file=self.shown_on, flush=True)


def run(config: Config, title: str) -> Runner:
    """Trains a config from scratch, with a line per epoch."""
    shutil.rmtree(config.work_dir, ignore_errors=True)
    config.log_level = 'ERROR'
    runner = Runner.from_cfg(config)
    runner.register_hook(Progress(title))
    with redirect_stdout(io.StringIO()):  # pycocotools prints a page per evaluation
        runner.train()
    return runner


def top1(runner: Runner, prefix: str = '') -> float:
    """The accuracy of the last validation, in percent."""
    return float(runner.message_hub.get_scalar(f'val/{prefix}accuracy/top1').current())


def plain(config: Config, model: dict[str, Any], name: str) -> Config:
    """The same data and schedule for a plain classifier."""
    config = copy.deepcopy(config)
    config.model = model
    config.work_dir = str(Path(config.work_dir).parent / name)
    config.custom_hooks = [dict(type='mmstp.EpochSeedHook')]
    config.default_hooks.checkpoint.pop('save_best')
    return config


def evaluate(config: Config, network: nn.Module) -> float:
    """The accuracy of a network on the test images, in percent."""
    loader = Runner.build_dataloader(copy.deepcopy(config.test_dataloader))
    network.eval()
    right = total = 0
    with torch.no_grad():
        for batch in loader:
            for sample in network.val_step(batch):
                right += int(sample.pred_label.item() == sample.gt_label.item())
                total += 1
    return 100 * right / total


@torch.no_grad()
def ratio_of_times(first: Callable[[], Any], second: Callable[[], Any]) -> float:
    """The median of interleaved timings, after one call of each."""
    ratios = []
    for repeat in range(21):
        seconds = []
        for function in (first, second):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        if repeat:
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def set_epochs(config: Config, epochs: int) -> None:
    """Shortens or lengthens a run whose last scheduler is a cosine over all of it."""
    config.train_cfg.max_epochs = epochs
    config.train_cfg.val_interval = min(config.train_cfg.val_interval, epochs)
    schedulers = config.param_scheduler
    (schedulers[-1] if isinstance(schedulers, list) else schedulers).update(
        end=epochs, T_max=epochs
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table with a rule below its head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ['   '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return [lines[0], '-' * len(lines[0]), *lines[1:]]


def l1_pruned(dense: nn.Module, config: Config, supernet: Supernet) -> tuple[float, float]:
    """The dense network cut to one width by L1 norm, without fine-tuning: top-1 and MACs ratio."""
    pruned = Supernet(copy.deepcopy(dense), supernet.inputs)
    pruned.order_channels(norm=1)
    largest = pruned.space.largest
    uniform = [
        Architecture(largest.depths, (width,) * len(largest.widths))
        for width in pruned.space.stages[0].widths
    ]
    ratios = pruned.cost.macs(uniform) / pruned.cost.macs([largest])
    # the narrowest that is not below the budget: the benefit of the doubt is the baseline's
    width = next(i for i, ratio in enumerate(ratios) if ratio >= config.model.target * 0.98)
    network = pruned.export(uniform[width])
    calibrate_on(network, Runner.build_dataloader(config.train_dataloader), 2000)
    return evaluate(config, network), float(ratios[width])


def main() -> None:
    """Trains, exports, reloads, checks, measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/demo')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--epochs', type=int, help='of both runs; default: those of the config')
    parser.add_argument('--baselines', action='store_true')
    parser.add_argument(
        '--tiny', action='store_true', help='64 images and a small pool: a check of the way alone'
    )
    args = parser.parse_args()
    start = time.perf_counter()
    out = Path(args.work_dir)
    check_work_dir(args.work_dir)
    check_folder(out / 'export')  # rather than after the training
    config = load_config(str(ROOT / 'configs/stp/digits.py'))
    config.work_dir = str(out / 'stp')
    config.randomness = dict(seed=args.seed)
    if args.epochs:
        set_epochs(config, args.epochs)
    if args.tiny:
        config.model.pool.size = 3
        for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            config[field].dataset.indices = 64

    print('1. the dense network, trained without STP')
    classifier = config.model.model.to_dict()
    dense = run(plain(config, copy.deepcopy(classifier), 'dense'), 'dense')
    print('2. STP: the search, then the survivor alone, in one run')
    pruned = run(copy.deepcopy(config), 'STP')
    stp = stp_of(pruned)
    architecture = stp.pool.best
    print(f'3. the pool left {architecture}; cut out, written, reloaded from config and weights')
    subnet = stp.export(architecture)
    description = write_export(out / 'export', subnet, config, stp, architecture)
    reloaded = reload(out / 'export')
    plot_pool(out / 'stp', out / 'pool.png')
    for network in (reloaded, subnet, dense.model):
        network.eval()
    images = torch.randn(32, *description['input_shape'])
    summary = {
        'dense_top1': top1(dense),
        'subnet_top1': evaluate(config, reloaded),
        'macs_ratio': description['macs_ratio'],
        'params_ratio': description['params_ratio'],
        'latency_ratio': ratio_of_times(lambda: reloaded(images), lambda: dense.model(images)),
        'architecture': str(architecture),
        'export_max_abs_diff': max_abs_difference(subnet, reloaded, (2, *config.model.input_shape)),
        'epochs': config.train_cfg.max_epochs,
        'seed': args.seed,
    }
    if args.baselines:
        print('4. baselines')
        scratch = run(plain(config, Config.fromfile(out / 'export/compact.py').model, 'scratch'),
                      'the compact network, trained directly')  # fmt: skip
        summary['scratch_top1'] = top1(scratch)
        summary['l1_top1'], summary['l1_macs_ratio'] = l1_pruned(dense.model, config, stp.supernet)
    summary['seconds'] = round(time.perf_counter() - start, 1)
    write_json(out / 'summary.json', summary)
    print(table(summary, description))
    print(f'picture: {out / "pool.png"}   export: {out / "export"}   all numbers: ', end='')
    print(out / 'summary.json')
    if summary['export_max_abs_diff'] != 0:
        raise SystemExit('the reloaded network is not the exported one: ' + json.dumps(summary))


def table(summary: dict[str, Any], description: dict[str, Any]) -> str:
    """The result for a person."""
    dense_macs, dense_params = description['macs_dense'], description['params_dense']
    rows = [
        ('', 'top-1', 'MACs', 'parameters', 'latency'),
        ('dense, without STP', f'{summary["dense_top1"]:.1f} %', f'{dense_macs / 1e6:.2f} M',
         f'{dense_params / 1e6:.2f} M', '1'),
        ('subnet, cut out', f'{summary["subnet_top1"]:.1f} %',
         f'{description["macs"] / 1e6:.2f} M ({summary["macs_ratio"]:.1%})',
         f'{description["params"] / 1e6:.2f} M ({summary["params_ratio"]:.1%})',
         f'{summary["latency_ratio"]:.2f}'),
    ]  # fmt: skip
    if 'scratch_top1' in summary:
        rows.append(('the same, trained directly', f'{summary["scratch_top1"]:.1f} %', '', '', ''))
        rows.append(('dense, L1-pruned', f'{summary["l1_top1"]:.1f} %',
                     f'({summary["l1_macs_ratio"]:.1%})', '', ''))  # fmt: skip
    result = (
        f'architecture {summary["architecture"]}; reloaded from its config and weights it differs '
        f'by {summary["export_max_abs_diff"]}; {summary["seconds"]:.0f} s'
    )
    return '\n'.join(['', *aligned(rows), '', result])


if __name__ == '__main__':
    main()
