"""Trains a config: ``python tools/train.py configs/stp/r50_15pct.py``.

The config may be one of a classifier or of a detector.
"""

import argparse
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner

from mmstp.checkpoints import plain_loading, read_checkpoint
from mmstp.cli.data_checks import check_built_data
from mmstp.cli.launch import (
    add_common_arguments,
    check_data,
    is_stp,
    leave_processes,
    load_config,
    prepare,
    tell_errors_plainly,
)
from mmstp.cli.resuming import (
    full_disk_told,
    newest_checkpoint,
    resumable,
    warn_of_overwriting,
    work_dir_locked,
)
from mmstp.cli.same_run import refuse_other_run
from mmstp.errors import LaunchError
from mmstp.registry import type_of
from mmstp.stp.hooks.interruption import Interrupted, InterruptHook, leaving_on_signals
from mmstp.stp.hooks.seeding import EpochSeedHook
from mmstp.stp.refused import refuse_fields


def parse_args() -> argparse.Namespace:
    """The flags of ``tools/train.py`` in mmpretrain and mmdet."""
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='train config file path')
    parser.add_argument(
        '--resume', nargs='?', type=str, const='auto',
        help='resume from this checkpoint, or, without a value, from the latest in the work dir',
    )  # fmt: skip
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during the training'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate by the actual batch size over auto_scale_lr.base_batch_size',
    )  # fmt: skip
    parser.add_argument(
        '--no-persistent-workers', action='store_true',
        help='disable persistent_workers in dataloaders',
    )  # fmt: skip
    add_common_arguments(parser)
    return parser.parse_args()


def merge_args(config: Config, args: argparse.Namespace) -> None:
    """Merges the flags into the config."""
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
        # there is no metric to choose the best checkpoint by
        config.default_hooks.get('checkpoint', {}).pop('save_best', None)
    prepare(config, args)
    hooks = config.default_hooks = config.get('default_hooks') or {}
    saving = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))  # MMEngine's
    if saving and type_of(saving.get('type'), HOOKS) is CheckpointHook:
        saving['type'] = 'mmstp.CheckpointHook'  # whose files are never half written
    if args.amp:
        if get_device() == 'cpu':
            raise LaunchError(
                '--amp needs an accelerator, and PyTorch finds none here: leave it out, or look '
                'at torch.cuda.is_available()'
            )
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume:
        config.resume = True
        config.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise LaunchError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config: the batch of '
                'all GPUs together that its learning rate is for'
            )
        config.auto_scale_lr.enable = True
    if args.no_persistent_workers:
        for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if config.get(field):
                config[field].persistent_workers = False


def choose_checkpoint(config: Config) -> None:
    """Finds the checkpoint to go on from, and makes sure that it is one of this run."""

    def refuse(content: dict[str, Any], path: str) -> None:
        if content and is_stp(config):
            refuse_other_run(config, content, path)

    path = config.get('load_from')
    if config.get('resume') and path is None:
        if found := newest_checkpoint(config.work_dir, refuse):
            config.load_from, _ = found
    elif path is not None and '://' not in str(path):
        refuse(resumable(path) if config.get('resume') else read_checkpoint(path), path)
    if config.get('load_from') is None:
        warn_of_overwriting(config.work_dir)


def main() -> None:
    """Checks, builds and trains."""
    args = parse_args()
    with leaving_on_signals():
        train(args)
    leave_processes()


def train(args: argparse.Namespace) -> None:
    """Trains by the command line."""
    config = load_config(args.config, args.cfg_options)
    merge_args(config, args)
    if is_stp(config):
        refuse_fields(config)  # wrappers would fail in their own words
    check_data(config, 'train_dataloader', 'val_dataloader')
    with (
        full_disk_told(config.work_dir),
        work_dir_locked(config.work_dir),
        plain_loading(),
    ):
        choose_checkpoint(config)
        runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
        if isinstance(runner, Runner):
            check_built_data(runner)
        if any(isinstance(hook, EpochSeedHook) for hook in runner.hooks):  # it can go on anywhere
            runner.register_hook(InterruptHook())
        try:
            runner.train()
        except Interrupted:
            leave_processes()
            raise


if __name__ == '__main__':
    tell_errors_plainly()
    main()
