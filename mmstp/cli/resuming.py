"""Where a run goes on: the newest good checkpoint of a work dir, which one run at a time has."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger

from ..atomic_files import naming
from ..checkpoints import read_checkpoint, weights_of
from ..errors import CheckpointError, LaunchError
from ..stp.hooks.checkpoints import LAST, STOPPED

try:
    import fcntl
except ImportError:  # Windows, where work dirs are not locked
    fcntl = None  # type: ignore[assignment]

LOCK = 'run.lock'
_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def resumable(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint to resume from.

    Raises:
        CheckpointError: If it cannot be read, is none of a training run, or its weights are not
            finite.
    """
    content = read_checkpoint(path)
    meta = content.get('meta')
    at = meta.get('iter') if isinstance(meta, dict) else None
    if type(at) is not int or not {'state_dict', 'message_hub'} <= content.keys():
        raise CheckpointError(
            f'checkpoint {str(path)!r} cannot be resumed from: it is none of a training run, which '
            'says how far the training was (meta.epoch, meta.iter). Weights alone go into load_from'
        )
    weights_of(content, path)
    return content


def newest_checkpoint(
    work_dir: str | Path, refuse: Callable[[dict[str, Any], str], None] = lambda *_: None
) -> tuple[str, dict[str, Any]] | None:
    """The checkpoint that `LAST` names, with its content; where it is not good, the newest that is.

    Args:
        work_dir: Where they lie.
        refuse: Raises a `CheckpointError` for the content of another run's, at a path.

    Returns:
        None where there are no checkpoints at all.

    Raises:
        CheckpointError: If there are, and none of them is good: a run that started anew would
            overwrite them.
    """
    folder = Path(work_dir)
    try:
        named = (folder / LAST).read_text().strip() if (folder / LAST).is_file() else ''
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f'{folder / LAST} cannot be read: {error}') from error
    if '://' in named or (named and any(Path(named).glob('*_states.pt'))):
        return named, {}  # elsewhere, or a folder of DeepSpeed's: MMEngine reads it
    # checkpoints with the best metric hold no optimizer, so the training cannot go on from them
    found = [path for path in folder.glob('*.pth') if not path.name.startswith('best_')]
    refused: list[str] = []
    inside = Path(named).absolute().parent == folder.absolute()
    if named and inside and not found and not Path(named).exists():
        MMLogger.get_instance('mmstp').warning(
            f'{folder / LAST} names {named!r}, which was not written (a full disk, or the end of '
            'the run while it was): there is no checkpoint, and the training starts from its '
            'beginning'
        )
        return None
    if named:
        if not inside:
            MMLogger.get_instance('mmstp').warning(
                f'{folder / LAST} names {named!r}, which lies in another folder: was the work dir '
                'copied or moved? --resume FILE names a checkpoint'
            )
        try:
            content = resumable(named)
            refuse(content, named)
            return named, content
        except CheckpointError as error:
            refused.append(f'{LAST} names a file that cannot be taken: {error}')
            found = [path for path in found if path.absolute() != Path(named).absolute()]
    elif found:
        state = 'is empty' if (folder / LAST).is_file() else 'is missing'
        refused.append(f'{folder / LAST} {state}')
    good: list[tuple[tuple[str, int], str, dict[str, Any]]] = []
    for path in found:
        try:
            content = resumable(path)
            refuse(content, str(path))
        except CheckpointError as error:
            refused.append(str(error))
            continue
        # by the time: a run that began anew in the folder may not be as far as the one before
        age = str(content['meta'].get('time')), content['meta']['iter']
        if not good or age > good[0][0]:
            good = [(age, str(path), content)]  # one at a time in memory
    logger = MMLogger.get_instance('mmstp')
    if good:
        (_, iteration), name, content = good[0]
        for line in refused:
            logger.warning(line)
        logger.warning(f'resuming from {name}, the newest good checkpoint (iteration {iteration})')
        return name, content
    if refused:
        raise CheckpointError(
            f'nothing in {str(work_dir)!r} can be resumed from, and starting anew would overwrite '
            'it:\n  ' + '\n  '.join(refused) + '\nName a checkpoint with --resume FILE, or another '
            'folder with --work-dir'
        )
    logger.info(f'no checkpoint in {str(work_dir)!r}: the training starts from its beginning')
    return None


def warn_of_overwriting(work_dir: str | Path) -> None:
    """Says that there are checkpoints which a run that starts anew will overwrite."""
    if found := sorted(path.name for path in Path(work_dir).glob('*.pth')):
        MMLogger.get_instance('mmstp').warning(
            f'{str(work_dir)!r} holds {len(found)} checkpoints of an earlier run ({found[0]}, …): '
            'this one starts from its beginning and writes over them. --resume goes on instead'
        )


@contextmanager
def work_dir_locked(work_dir: str | Path) -> Iterator[None]:
    """Inside, the folder is this run's; the lock goes when the process does, however it ends.

    Raises:
        LaunchError: If another run has it.
    """
    ranks = [os.environ[name] for name in _RANKS if name in os.environ]
    if fcntl is None or (ranks and ranks[0] != '0'):
        yield
        return
    path = Path(work_dir) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+b', buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            other = file.read().decode().strip() or 'unknown'
            raise LaunchError(
                f'another run ({other}) is writing into work_dir '
                f'{str(work_dir)!r}: files of both would be mixed. Give another folder with '
                '--work-dir, or wait until it has ended'
            ) from error
        except OSError as error:  # file systems without locks
            MMLogger.get_instance('mmstp').warning(f'{path} cannot be locked: {error.strerror}')
        # else workers of dataloaders keep the lock, for seconds, when the run is killed
        os.register_at_fork(after_in_child=file.close)
        with naming(path):
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
        yield


@contextmanager
def full_disk_told(work_dir: str | Path) -> Iterator[None]:
    """Inside, a disk that is full ends a run with what could not be written, and what to do.

    Checkpoints tell it themselves (`CheckpointHook`); logs, dumps of the config and `LAST` are
    written by MMEngine, whose errors name no file.

    Raises:
        LaunchError: Instead.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LaunchError(
            f'{error.filename or "a file"} cannot be written: {error.strerror}, with '
            f'{shutil.disk_usage(work_dir).free:,} bytes left in {str(work_dir)!r}. {STOPPED}'
        ) from error
