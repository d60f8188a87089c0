"""Checkpoints that are whole or not there, and never cost a good one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mmengine.hooks
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import Runner

from ...atomic_files import TEMPORARY, whole_file
from ...errors import CheckpointError, OptionError
from ...registry import HOOKS

LAST = 'last_checkpoint'  # MMEngine's file with the path of the checkpoint written last
STOPPED = (
    'The run stops here, and no checkpoint was removed: make room and run the command again with '
    '--resume'
)


class Writing:
    """Writes files beside the training, one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._begun: list[Future[None]] = []

    def begin(self, write: Callable[..., None], *args: Any) -> None:
        """Calls a function that writes a file, some time soon."""
        self._begun.append(self._thread.submit(write, *args))

    def finish(self) -> None:
        """Waits until all is written; raises what one of the functions has raised."""
        begun, self._begun = self._begun, []
        for one in begun:
            one.result()


WRITING = Writing()  # of this process: MMEngine makes a backend anew for every file


@register_backend('mmstp', prefixes='mmstp')
class WholeFiles(LocalBackend):
    """Local files, written beside their place and renamed when they are whole.

    What is removed stays until `remove_but`: MMEngine removes the old before it writes the new.

    Args:
        background: Whether `WRITING` writes them.
    """

    def __init__(self, background: bool = False) -> None:
        self._background = background
        self._unwanted: list[Path] = []

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Writes a file.

        Raises:
            CheckpointError: If it cannot be written; what was there before still is. In the
                background, `Writing.finish` raises it.
        """
        if self._background:
            WRITING.begin(_put, obj, Path(filepath))
        else:
            _put(obj, Path(filepath))

    def remove(self, filepath: str | Path) -> None:
        self._unwanted.append(Path(filepath))

    def remove_but(self, written: Collection[str]) -> None:
        """Removes what was to be removed, unless it was written anew."""
        for path in self._unwanted:
            if str(path) not in written:
                path.unlink(missing_ok=True)
        self._unwanted = []


def _put(content: bytes | memoryview, path: Path) -> None:
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be written: {error.strerror}. {STOPPED}') from error


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """MMEngine's, whose files are whole or not there, and which removes old ones last.

    So the disk has to have room for one more than ``max_keep_ckpts``. Folders that are not local
    (``out_dir='s3://…'``) are written to as MMEngine does.

    Args:
        *args: Of MMEngine's, like the further ``options``.
        background: Whether files are written beside the training, which goes on when their content
            is put together in memory. One that cannot be written ends the run when the next is due.

    Raises:
        OptionError: If ``background`` is no bool, or the folder is not local.
    """

    file_backend: Any

    def __init__(self, *args: Any, background: bool = False, **options: Any) -> None:
        if type(background) is not bool:
            raise OptionError(f'CheckpointHook.background={background!r}: expected True or False')
        super().__init__(*args, **options)
        self.background = background

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is not LocalBackend:
            if self.background:
                raise OptionError(
                    'CheckpointHook.background=True writes to local folders, not to '
                    f'{str(self.out_dir)!r}: leave it out'
                )
            return
        self.backend_args = {'backend': 'mmstp', 'background': self.background}
        self.file_backend = WholeFiles()
        if is_main_process():
            for left in Path(self.out_dir).glob(f'*.pth{TEMPORARY}'):  # of a run that was killed
                left.unlink()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        self.finish()
        super()._save_checkpoint_with_step(runner, step, meta)
        if not self.background:
            self.finish()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        self.finish()
        super()._save_best_checkpoint(runner, metrics)
        if not self.background:
            self.finish()

    def after_train(self, runner: Runner) -> None:
        self.finish()
        super().after_train(runner)

    def finish(self) -> None:
        """Waits for what is being written, and removes what that replaces.

        Raises:
            CheckpointError: If it could not be written; nothing is removed then.
        """
        WRITING.finish()
        if isinstance(self.file_backend, WholeFiles):
            several = getattr(self, 'best_ckpt_path_dict', {}).values()
            best = [getattr(self, 'best_ckpt_path', None), *several]
            self.file_backend.remove_but([str(path) for path in [self.last_ckpt, *best]])


def saves(hook: mmengine.hooks.Hook, runner: Runner) -> bool:
    """Whether a hook saves a checkpoint after this iteration."""
    if not isinstance(hook, mmengine.hooks.CheckpointHook) or hook.by_epoch:
        return False
    last = hook.save_last and hook.is_last_train_iter(runner)
    return bool(last or hook.every_n_train_iters(runner, hook.interval, hook.save_begin))
