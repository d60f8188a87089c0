"""Checkpoints that are whole or not there, and never cost a good one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import mmengine.hooks
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import Runner

from ...atomic_files import TEMPORARY, whole_file
from ...errors import CheckpointError
from ...registry import HOOKS

LAST = 'last_checkpoint'  # MMEngine's file with the path of the checkpoint written last


@register_backend('mmstp', prefixes='mmstp')
class WholeFiles(LocalBackend):
    """Local files, written beside their place and renamed when they are whole.

    What is removed stays until `remove_but`: MMEngine removes the old before it writes the new.
    """

    def __init__(self) -> None:
        self._unwanted: list[Path] = []

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Writes a file.

        Raises:
            CheckpointError: If it cannot be written; what was there before still is.
        """
        try:
            with whole_file(Path(filepath)) as file:
                file.write(obj)
        except OSError as error:
            raise CheckpointError(
                f'{filepath} cannot be written: {error.strerror}. The run stops here, and no '
                'checkpoint was removed: make room and run the command again with --resume'
            ) from error

    def remove(self, filepath: str | Path) -> None:
        self._unwanted.append(Path(filepath))

    def remove_but(self, written: Collection[str]) -> None:
        """Removes what was to be removed, unless it was written anew."""
        for path in self._unwanted:
            if str(path) not in written:
                path.unlink(missing_ok=True)
        self._unwanted = []


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """MMEngine's, whose files are whole or not there, and which removes old ones last.

    So the disk has to have room for one more than ``max_keep_ckpts``. Folders that are not local
    (``out_dir='s3://…'``) are written to as MMEngine does.
    """

    file_backend: Any

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is not LocalBackend:
            return
        self.backend_args = {'backend': 'mmstp'}
        self.file_backend = WholeFiles()
        if is_main_process():
            for left in Path(self.out_dir).glob(f'*.pth{TEMPORARY}'):  # of a run that was killed
                left.unlink()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_now()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._remove_now()

    def _remove_now(self) -> None:
        if isinstance(self.file_backend, WholeFiles):
            several = getattr(self, 'best_ckpt_path_dict', {}).values()
            best = [getattr(self, 'best_ckpt_path', None), *several]
            self.file_backend.remove_but([str(path) for path in [self.last_ckpt, *best]])
