"""A disk that is really full: a small one in memory, which only the process of the run sees."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from mmengine.hooks import Hook

from mmstp.errors import MmstpError
from mmstp.stp.hooks import checkpoints
from tests import tiny
from tests.runs import same
from tests.tools.conftest import run_tool
from tests.tools.test_interruptions import content

BALLAST = 'ballast'


def fill(folder, left=0):
    """Leaves so many bytes of the disk."""
    with (folder / BALLAST).open('wb', buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - left))


class Fill(Hook):
    """Fills the disk just before a file is written, of those that a run writes in this order."""

    priority = 'LOW'  # behind the logger, before the hook that saves

    def __init__(self, file):
        self.file = file

    def before_train(self, runner):
        own = checkpoints.whole_file

        @contextmanager
        def whole_file(path):
            with own(path) as file:
                yield file
            fill(path.parent)

        if self.file == 'last_checkpoint':
            checkpoints.whole_file = whole_file

    def before_train_iter(self, runner, *args, **kwargs):
        if self.file == 'scalars.json':
            fill(Path(runner.work_dir))

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 1 and self.file in LEFT:
            fill(Path(runner.work_dir), LEFT[self.file])


LEFT = {'best_architecture.json': 0, 'iter_2.pth': 100_000}


def inside(config, work_dir, file, out):
    """A run that finds the disk full, and the same command when there is room."""
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', work_dir]
    subprocess.run(mount, check=True)
    command = ('train.py', config, '--work-dir', work_dir, '--resume', 'auto', '--cfg-options',
               'default_hooks.checkpoint.by_epoch=False',
               'default_hooks.checkpoint.max_keep_ckpts=1')  # fmt: skip
    own = checkpoints.whole_file
    if file == 'run.lock':
        fill(Path(work_dir))
    try:
        run_tool(*command, hooks=[Fill(file)])
    except MmstpError as error:
        said = str(error)
    kept = [path.name for path in Path(work_dir).glob('*.pth*')]
    checkpoints.whole_file = own
    (Path(work_dir) / BALLAST).unlink()
    run_tool(*command)
    shutil.copy(Path(work_dir) / 'iter_8.pth', out)
    (Path(out) / 'said.json').write_text(json.dumps([said, kept]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('file', 'named', 'kept'),
    [
        ('run.lock', True, []),
        ('scalars.json', False, []),
        ('last_checkpoint', False, ['iter_1.pth']),
        ('best_architecture.json', True, ['iter_1.pth']),
        ('iter_2.pth', True, ['iter_1.pth']),
    ],
)
def test_it_ends_the_run_with_a_sentence_and_costs_no_checkpoint(
    file, named, kept, tiny_config, trained, tmp_path
):
    """What MMEngine writes itself is not named, but the folder is."""
    disk, out = tmp_path / 'disk', tmp_path / 'out'
    disk.mkdir()
    out.mkdir()
    tried = subprocess.run(
        ['unshare', '-m', 'mount', '-t', 'tmpfs', 'tmpfs', disk], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f'a disk cannot be mounted here: {tried.stderr.strip()}')
    run = 'import sys; from tests.tools.test_full_disk import inside; inside(*sys.argv[1:])'
    arguments = [tiny_config, disk, file, out]
    python = ['unshare', '-m', sys.executable, '-W', 'ignore', '-c', run]
    subprocess.run([*python, *arguments], cwd=tiny.ROOT, check=True)
    said, found = json.loads((out / 'said.json').read_text())
    written = disk / file if named else 'a file'
    assert said.startswith(f'{written} cannot be written: No space left on device')
    assert said.endswith(
        'no checkpoint was removed: make room and run the command again with --resume'
    )
    assert str(disk) in said
    assert found == kept
    assert same(content(out / 'iter_8.pth'), content(trained / 'epoch_2.pth'))
