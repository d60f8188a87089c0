"""Runs that are told to end, killed while they save, or find the disk full."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmstp.cli.launch import load_config
from mmstp.cli.resuming import newest_checkpoint
from mmstp.cli.same_run import refuse_other_run
from mmstp.errors import CheckpointError
from mmstp.stp.hooks.checkpoints import LAST, CheckpointHook, WholeFiles
from mmstp.stp.hooks.interruption import EXIT_CODE, SAVED, Interrupted, InterruptHook
from tests import tiny
from tests.runs import same

WHOLE = ('state_dict', 'optimizer', 'param_schedulers', 'mmstp')


def content(path):
    found = torch.load(path, weights_only=False)
    return {key: found[key] for key in WHOLE}


class SendItself(Hook):
    """Sends the own process a signal, before an iteration or in an evaluation."""

    def __init__(self, number, iteration=None):
        self.number, self.iteration = number, iteration

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)

    def before_val_iter(self, runner, *args, **kwargs):
        if self.iteration is None:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ('number', 'iteration', 'saved'),
    [
        ('SIGTERM', 5, (1, 6)),
        pytest.param('SIGUSR1', None, (1, 4), marks=pytest.mark.slow),  # in the first evaluation
    ],
)
def test_a_signal_saves_and_the_same_command_ends_as_if_it_had_not_come(
    number, iteration, saved, call, tiny_config, trained, tmp_path, monkeypatch
):
    handlers = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)]
    command = ('train.py', tiny_config, '--work-dir', tmp_path, '--resume', 'auto',
               '--cfg-options', 'train_cfg.val_interval=1')  # fmt: skip
    own = Runner.from_cfg
    with monkeypatch.context() as patch:

        def from_cfg(cfg):
            runner = own(cfg)
            assert any(isinstance(hook, CheckpointHook) for hook in runner.hooks)
            runner.register_hook(SendItself(getattr(signal, number), iteration))
            return runner

        patch.setattr(Runner, 'from_cfg', from_cfg)
        with pytest.raises(Interrupted) as left:
            call(*command)
    assert left.value.code == EXIT_CODE == os.EX_TEMPFAIL
    assert [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    meta = torch.load(tmp_path / SAVED, weights_only=False)['meta']
    assert (meta['epoch'], meta['iter']) == saved
    call(*command)
    assert same(content(tmp_path / 'epoch_2.pth'), content(trained / 'epoch_2.pth'))


@contextmanager
def largest_file(size):
    """As on a disk that is full: no file may be larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FillTheDisk(Hook):
    """Before the second checkpoint of the second epoch."""

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 5:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))


def test_a_full_disk_stops_the_run_before_anything_is_removed(tmp_path):
    """Where one checkpoint is kept, which MMEngine removes before it writes the next."""
    cfg = tiny.config(tmp_path, train_cfg__val_interval=1)
    cfg.default_hooks.checkpoint = dict(
        type='mmstp.CheckpointHook', max_keep_ckpts=1, interval=2, by_epoch=False, save_best='auto'
    )
    (tmp_path / 'iter_99.pth.tmp').touch()  # of a run that was killed while it wrote
    runner = Runner.from_cfg(cfg)
    runner.register_hook(FillTheDisk())
    message = r'iter_6\.pth cannot be written: File too large.*no checkpoint was removed'
    with largest_file(-1), pytest.raises(CheckpointError, match=message):
        runner.train()
    kept = sorted(path.name for path in tmp_path.glob('*.pth*'))  # iter_2 made way for iter_4
    assert kept == ['best_accuracy_top1_iter_4.pth', 'iter_4.pth']
    assert newest_checkpoint(tmp_path)[1]['meta']['iter'] == 4


def test_what_was_written_anew_is_not_removed(tmp_path):
    backend = WholeFiles()
    for name in ('a.pth', 'b.pth'):
        backend.remove(tmp_path / name)
        backend.put(b'new', tmp_path / name)
    backend.remove_but([str(tmp_path / 'a.pth')])
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


@pytest.mark.parametrize(
    ('change', 'message'),
    [('budget', 'model.target = 0.3 in the checkpoint, 0.4'), ('search', 'no state of the search')],
)
def test_a_foreign_checkpoint_is_named_and_the_one_before_taken(
    change, message, tiny_config, trained, tmp_path, warnings
):
    shutil.copy(trained / 'epoch_1.pth', tmp_path)
    foreign = torch.load(trained / 'epoch_2.pth', weights_only=False)
    if change == 'search':
        del foreign['mmstp']
    else:
        foreign['meta']['cfg'] = foreign['meta']['cfg'].replace('target=0.4', 'target=0.3')
    torch.save(foreign, tmp_path / 'epoch_2.pth')
    (tmp_path / LAST).write_text(str(tmp_path / 'epoch_2.pth'))
    config = load_config(str(tiny_config))
    name, _ = newest_checkpoint(tmp_path, partial(refuse_other_run, config))
    assert name == str(tmp_path / 'epoch_1.pth')
    assert f'{LAST} names a file that does not do: ' in warnings()
    assert message in warnings()


def test_signals_are_not_heard_outside_the_main_thread(monkeypatch):
    runner = Mock()
    monkeypatch.setattr('threading.current_thread', lambda: None)
    InterruptHook().before_train(runner)
    assert 'not in the main thread' in runner.logger.warning.call_args.args[0]


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_all_processes_of_a_run_get_the_signal(number, tiny_config, trained, tmp_path):
    """As schedulers send it: to the workers of the dataloaders too, again and again."""
    command = [
        sys.executable, '-W', 'ignore', tiny.ROOT / 'tools/train.py', tiny_config,
        '--work-dir', tmp_path, '--resume', 'auto', '--cfg-options',
        'train_dataloader.num_workers=2', 'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=1',
    ]  # fmt: skip
    codes = []
    while not codes or codes[-1]:
        run = subprocess.Popen(command, cwd=tiny.ROOT, start_new_session=True)
        before = newest(tmp_path)
        while run.poll() is None and (newest(tmp_path) == before or len(codes) == 3):
            time.sleep(0.05)
        if run.poll() is None:
            os.killpg(run.pid, number)
        codes.append(run.wait())
        assert len(codes) < 9
    assert set(codes[:-1]) == {EXIT_CODE if number == signal.SIGTERM else -number}
    assert same(content(tmp_path / 'iter_8.pth'), content(trained / 'epoch_2.pth'))


def newest(work_dir):
    return max((path.stat().st_mtime_ns for path in work_dir.glob('*.pth')), default=0)
