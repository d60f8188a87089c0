"""What the command-line tools share: flags, configs and checks made before anything is built."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from ..datasets.check import check_datasets
from ..deploy.export import BACKBONE
from ..errors import CheckpointError, LaunchError
from ..registry import build_model
from ..stp.algorithm import STP
from ..stp.hooks.pool import STATE


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that ``train.py`` and ``test.py`` of mmpretrain and mmdet share."""
    parser.add_argument('--work-dir', help='the folder to save logs and models')
    pinning = 'disable pin_memory in dataloaders'
    parser.add_argument('--no-pin-memory', action='store_true', help=pinning)
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    parser.add_argument('--launcher', choices=launchers, default='none', help='job launcher')
    # torch.distributed passes it to every process it starts
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    add_config_options(parser)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """``--cfg-options``, as in all tools of OpenMMLab."""
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction,
        help='override settings of the config, as key=value; nested keys with dots, lists as '
        'key="[a,b]" or key=a,b',
    )  # fmt: skip


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Reads a config, merges ``--cfg-options`` and opens the scope of its types."""
    if not Path(path).is_file():
        raise LaunchError(f'config {path!r} is not a file; configs of mmstp lie in configs/')
    try:
        config = Config.fromfile(path)
    except FileNotFoundError as error:
        missing = os.path.relpath(error.filename or str(error))
        hint = ': tools/export.py writes it (--out names its folder)' * missing.endswith(BACKBONE)
        raise LaunchError(f'{path} inherits {missing}, which does not exist{hint}') from error
    if options:
        config.merge_from_dict(options)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    return config


def prepare(config: Config, args: argparse.Namespace) -> None:
    """Applies the common flags and checks the work dir."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        own = config.get(field)
        if own is None:
            continue
        defaults = dict(
            pin_memory=torch.cuda.is_available(), persistent_workers=own.get('num_workers', 0) > 0
        )
        if not is_detection(config):  # detectors take lists of images of different sizes
            defaults['collate_fn'] = dict(type='default_collate')
        forced = dict(pin_memory=False) if args.no_pin_memory else {}
        config[field] = ConfigDict({**defaults, **own, **forced})
    check_work_dir(config.work_dir)
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        # MMEngine itself starts processes on accelerators only
        torch.distributed.init_process_group('gloo')
        wrapper = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None,
            find_unused_parameters=config.get('find_unused_parameters', False),
        )  # fmt: skip
        config.setdefault('model_wrapper_cfg', wrapper)


def is_detection(config: Config) -> bool:
    """Whether it is the config of a run of mmdet, with its datasets, hooks and predictions."""
    return bool(config.get('default_scope') == 'mmdet')


def is_stp(config: Config) -> bool:
    """Whether it is the config of an STP run."""
    return config.model.get('type') in ('mmstp.STP', 'STP')


def leave_processes() -> None:
    """Leaves the process group at the end of a run.

    Otherwise Gloo's threads may want the interpreter when it has ended, and abort the process
    (pytorch/pytorch#179291). Not for a run that failed: NCCL would wait for the others.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_work_dir(path: str) -> None:
    """Makes the folder; a `LaunchError` where no files can be written there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise LaunchError(
            f'work_dir {path!r} cannot be written: {error.strerror}. '
            'Give a folder that can with --work-dir'
        ) from error


def check_data(config: Config, *fields: str) -> None:
    """`check_datasets` for some of a config's dataloaders."""
    check_datasets(Config({field: config[field] for field in fields if config.get(field)}))


def build_stp(config: Config) -> STP:
    """The algorithm of a config, without a runner; a `LaunchError` where the model is no `STP`."""
    if not is_stp(config):
        raise LaunchError(
            f'model.type is {config.model.get("type")!r}; this tool needs the config of an STP '
            'run, where it is mmstp.STP'
        )
    stp = build_model({'data_preprocessor': config.get('data_preprocessor'), **config.model})
    assert isinstance(stp, STP)
    return stp


def load_search(stp: STP, checkpoint: str) -> None:
    """Loads the weights and the pool of an STP run's checkpoint; a `CheckpointError` of another's.

    The run's ``state_dict`` is read: with EMAHook that is the averaged weights.
    """
    try:
        content = torch.load(checkpoint, map_location='cpu', weights_only=False)
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(f'checkpoint {checkpoint!r} cannot be read: {error}') from error
    if not isinstance(content, dict) or STATE not in content:
        raise CheckpointError(
            f'checkpoint {checkpoint!r} was not written by an STP run: it holds no state of the '
            'search'
        )
    if 'ema_state_dict' in content:
        MMLogger.get_current_instance().info(
            f'{checkpoint} was written with EMAHook: the averaged weights are read'
        )
    # it has to fit (`require_fit`); SwinV2 takes keys away that it works out itself
    stp.load_state_dict(content['state_dict'], strict=False)
    stp.pool.load_state_dict(content[STATE]['pool'])
