"""What the command-line tools share: flags, configs and checks made before anything is built."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from ..checkpoints import dataset_meta_of, read_checkpoint, require_fit, weights_of
from ..datasets.check import check_datasets
from ..deploy.compact_model import CompactBackbone, CompactPart
from ..deploy.export import BACKBONE
from ..errors import CheckpointError, LaunchError, MmstpError
from ..registry import MODELS, build_model, type_of
from ..stp.algorithm import STP
from ..stp.search_state import read_search
from .same_run import refuse_other_run, search_of


def tell_errors_plainly() -> None:
    """An error of mmstp that ends this process is told in its sentence alone.

    With ``python -X dev`` it has its traceback, as all other errors have.
    """
    before = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, MmstpError) and not sys.flags.dev_mode:
            error.__cause__, error.__suppress_context__ = None, True
            error, trace = error.with_traceback(None), None
        before(kind, error, trace)

    sys.excepthook = tell


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
        '--cfg-options', nargs='+', action=_Settings,
        help='override settings of the config, as key=value; nested keys with dots, lists as '
        'key="[a,b]" or key=a,b',
    )  # fmt: skip


class _Settings(DictAction):
    """MMEngine's, with an error that names the setting which cannot be read."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for setting in values:
            try:
                super().__call__(parser, namespace, [setting], option_string)
            except (ValueError, AssertionError, RecursionError) as error:
                raise argparse.ArgumentError(
                    self,
                    f'{setting!r}: expected key=value, a list as key=[a,b], and of a dict each '
                    'entry for itself, as key.name=value',
                ) from error


def whole_number(least: int) -> Callable[[str], int]:
    """The type of a flag that takes a whole number of at least ``least``."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r}: expected a whole number, at least {least}')
        return int(text)

    return read


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
    # None, as pure-Python configs have it, means that no type is a bare name
    scope = config.get('default_scope') or ('mmdet' if is_detection(config) else 'mmpretrain')
    init_default_scope(scope)
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
    own = Path(args.config)
    if is_export(config) and own.resolve().parent == Path(config.work_dir).resolve():
        raise LaunchError(
            f'work_dir {config.work_dir!r} is the folder of {own.name}, which the runner would '
            'write over with its own copy: give another folder with --work-dir'
        )
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
    scope = config.get('default_scope')
    if scope is None:  # a pure-Python config: its types are classes
        kind = config.get('model', {}).get('type', '')
        scope = (kind if isinstance(kind, str) else kind.__module__).partition('.')[0]
    return bool(scope == 'mmdet')


def is_stp(config: Config) -> bool:
    """Whether it is the config of an STP run, however its type is written."""
    kind = config.get('model', {}).get('type')
    found = STP if kind == 'STP' else type_of(kind, MODELS)
    return isinstance(found, type) and issubclass(found, STP)


def leave_processes() -> None:
    """Leaves the process group at the end of a run.

    Otherwise Gloo's threads may want the interpreter when it has ended, and abort the process
    (pytorch/pytorch#179291). Not for a run that failed: NCCL would wait for the others.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_work_dir(path: str, flag: str = '--work-dir') -> None:
    """A `LaunchError` where no files can be written into the folder that a flag names.

    It is not made: what is refused later is to leave nothing behind.
    """
    if not str(path).strip():
        raise LaunchError(f'{flag} {str(path)!r} names no folder')
    folder = Path(path).absolute()
    try:
        there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
        with tempfile.NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        what = 'work_dir' if flag == '--work-dir' else flag
        raise LaunchError(
            f'{what} {str(path)!r} cannot be written: {error.strerror}. '
            f'Give a folder that can with {flag}'
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


def init_weights(stp: STP) -> None:
    """Initialises it, without MMEngine's four lines in the log for every parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        stp.init_weights()
    finally:
        logger.setLevel(level)


def load_search(stp: STP, checkpoint: str, config: Config | None = None) -> dict[str, Any]:
    """Loads the weights and the pool of an STP run's checkpoint.

    The run's ``state_dict`` is read: with EMAHook that is the averaged weights.

    Returns:
        What the run noted of its data (``dataset_meta``: the names of the classes), or nothing.

    Raises:
        CheckpointError: If the file cannot be read, is none of an STP run, or is of a run with
            another config than this one.
    """
    content = read_checkpoint(checkpoint)
    state = search_of(content, checkpoint)
    weights = weights_of(content, checkpoint)
    if config is not None:
        refuse_other_run(config, content, checkpoint)
    if 'ema_state_dict' in content:
        MMLogger.get_current_instance().info(
            f'{checkpoint} was written with EMAHook: the averaged weights are read'
        )
    try:
        _, alone = read_search(stp, state)
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {checkpoint!r}: {error}') from error
    if alone:
        stp.go_alone()
    # it has to fit (`require_fit`); SwinV2 takes keys away that it works out itself
    stp.load_state_dict(weights, strict=False)
    if not state.get('begun', True):
        stp.supernet.order_channels()  # as the run itself would, before it looks at candidates
        MMLogger.get_current_instance().warning(
            f'{checkpoint} is from before PoolHook.begin: the main network was trained alone, and '
            'its pool says nothing. Its channels are ordered by importance'
        )
    return dataset_meta_of(content)


def require_whole(model: nn.Module, config: Config) -> None:
    """Makes loading weights fail that lack tensors of the model, or have them in another shape.

    MMEngine would warn, and test random ones. Beside a compact backbone, weights that the model has
    no place for are refused too: such a network was made for its weights.
    """
    hint = 'The checkpoint has to be one of this config, and the config as it was then.'
    compact = is_export(config)
    for name, part in model.named_children():
        own = config.model.get(name)
        if not isinstance(own, dict) or not _is_compact(own):  # which refuse others themselves
            require_fit(part, hint, extra=not compact)


def is_export(config: Config) -> bool:
    """Whether it is the config of a compact network, as ``tools/export.py`` writes it.

    A detector of which nothing but the backbone is compact is another's.
    """
    model = config.get('model', {})
    compact = {name for name, part in model.items() if isinstance(part, dict) and _is_compact(part)}
    return bool(compact - {'backbone'} if is_detection(config) else 'backbone' in compact)


def _is_compact(part: dict[str, Any]) -> bool:
    return type_of(part.get('type'), MODELS) in (CompactBackbone, CompactPart)
