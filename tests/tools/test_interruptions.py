"""Runs that are told to end, killed while they save, or find the disk full."""

import copy
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmstp.cli.launch import load_config
from mmstp.cli.resuming import newest_checkpoint
from mmstp.cli.same_run import refuse_other_run
from mmstp.errors import CheckpointError
from mmstp.stp.hooks import checkpoints
from mmstp.stp.hooks.checkpoints import LAST, CheckpointHook, WholeFiles
from mmstp.stp.hooks.interruption import (
    EXIT_CODE,
    SAVED,
    SIGNALS,
    Interrupted,
    InterruptHook,
    leaving_on_signals,
)
from tests import tiny
from tests.runs import free_port, same
from tests.tools.conftest import run_tool

WHOLE = ('state_dict', 'optimizer', 'param_schedulers', 'mmstp')


def content(path, *more):
    found = torch.load(path, weights_only=False)
    return {key: found[key] for key in (*WHOLE, *more)}


@pytest.fixture(autouse=True)
def signals_heard_again():
    """Behind a process that would have ended."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


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
    command = ('train.py', tiny_config, '--work-dir', tmp_path, '--resume', 'auto',
               '--cfg-options', 'train_cfg.val_interval=1',
               'default_hooks.checkpoint.background=True')  # fmt: skip
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
    for name in (signal.SIGTERM, signal.SIGUSR1):  # a second one does not end it another way
        assert signal.getsignal(name) == signal.SIG_IGN
    meta = torch.load(tmp_path / SAVED, weights_only=False)['meta']
    assert (meta['epoch'], meta['iter']) == saved
    call(*command)
    assert same(content(tmp_path / 'epoch_2.pth'), content(trained / 'epoch_2.pth'))


def exit_code(function, *args):
    """Of a process of its own."""
    process = mp.get_context('fork').Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode


def told_where_all_is_caught(cfg):
    """As in MMEngine's dump of a config, which takes what is raised for its own."""
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    except:  # noqa: E722
        raise SyntaxError from None


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')  # of threads, from Python 3.12 on
def test_a_signal_before_the_training_asks_for_the_same_command(
    call, tiny_config, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(Runner, 'from_cfg', told_where_all_is_caught)
    command = ('train.py', tiny_config, '--work-dir', tmp_path, '--resume', 'auto')
    assert exit_code(call, *command) == EXIT_CODE
    assert 'SIGUSR1: nothing to save, leaving' in capfd.readouterr().err
    assert not list(tmp_path.glob('*.pth'))


def told_with_nobody_at_the_end_of_the_pipe():
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 2)
    with leaving_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_it_leaves_where_who_reads_its_messages_is_gone():
    """As ``2>&1 | tee``, which got the signal too."""
    assert exit_code(told_with_nobody_at_the_end_of_the_pipe) == EXIT_CODE


def begun(event):
    event.set()
    time.sleep(60)


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')
def test_processes_that_an_evaluation_forks_end_by_a_signal():
    """They are born with the handlers of the run."""
    runner = Mock(val_loop=None)
    runner.train_loop.dataloader = DataLoader(range(2))
    hook = InterruptHook()
    hook.before_train(runner)
    try:
        event = mp.get_context('fork').Event()
        process = mp.get_context('fork').Process(target=begun, args=(event,))
        process.start()
        event.wait()
        process.terminate()
        process.join(30)
    finally:
        hook.after_train(runner)
    assert process.exitcode == -signal.SIGTERM


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


@pytest.mark.parametrize('background', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_stops_the_run_before_anything_is_removed(background, tmp_path):
    """Where one checkpoint is kept, which MMEngine removes before it writes the next."""
    cfg = tiny.config(tmp_path, train_cfg__val_interval=1)
    cfg.default_hooks.checkpoint = dict(
        type='mmstp.CheckpointHook', max_keep_ckpts=1, interval=2, by_epoch=False,
        save_best='auto', background=background,
    )  # fmt: skip
    (tmp_path / 'iter_99.pth.tmp').touch()  # of a run that was killed while it wrote
    runner = Runner.from_cfg(cfg)
    runner.register_hook(FillTheDisk())
    message = r'iter_6\.pth cannot be written: File too large.*no checkpoint was removed'
    with largest_file(-1), pytest.raises(CheckpointError, match=message):
        runner.train()
    kept = sorted(path.name for path in tmp_path.glob('*.pth*'))  # iter_2 made way for iter_4
    assert kept == ['best_accuracy_top1_iter_4.pth', 'iter_4.pth']
    assert newest_checkpoint(tmp_path)[1]['meta']['iter'] == 4


class WriteLate(Hook):
    """Has each file written when the step behind its checkpoint is done; keeps its content."""

    priority = 'HIGHEST'  # before the hook that saves, and behind those that were registered before

    def __init__(self, monkeypatch):
        self.done, self.expected = threading.Semaphore(0), []
        own = checkpoints.whole_file

        @contextmanager
        def late(path):
            assert self.done.acquire(timeout=60)
            with own(path) as file:
                yield file

        monkeypatch.setattr(checkpoints, 'whole_file', late)

    def after_train_iter(self, runner, *args, **kwargs):
        assert not (Path(runner.work_dir) / f'iter_{runner.iter}.pth').exists()
        if runner.iter:
            self.done.release()

    def after_train_epoch(self, runner):
        self.done.release()

    def before_save_checkpoint(self, runner, checkpoint):
        self.expected.append(copy.deepcopy({key: checkpoint[key] for key in WHOLE}))


def test_in_the_background_each_file_is_of_its_step(tmp_path, monkeypatch):
    """Though weights and optimizer have gone on when it is written."""
    cfg = tiny.config(tmp_path, train_cfg__max_epochs=1)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = dict(
        type='mmstp.CheckpointHook', interval=1, by_epoch=False, background=True
    )
    runner, late = Runner.from_cfg(cfg), WriteLate(monkeypatch)
    runner.register_hook(late)
    runner.train()
    assert same([content(tmp_path / f'iter_{i}.pth') for i in range(1, 5)], late.expected)
    assert not same(late.expected[0], late.expected[1])


def test_what_fails_in_the_background_is_raised_at_the_end_and_nothing_removed(tmp_path):
    (tmp_path / 'file').touch()
    hook = CheckpointHook(background=True)
    hook.file_backend = WholeFiles()
    hook.file_backend.remove(tmp_path / 'file')
    WholeFiles(background=True).put(b'new', tmp_path / 'file' / 'a.pth')
    with pytest.raises(CheckpointError, match=r'a\.pth cannot be written: '):
        hook.finish()
    assert (tmp_path / 'file').exists()
    hook.finish()
    assert not (tmp_path / 'file').exists()


def test_the_background_is_for_local_folders():
    with pytest.raises(ValueError, match='background=1: expected True or False'):
        CheckpointHook(background=1)
    hook, runner = (
        CheckpointHook(background=True, backend_args=dict(backend='http')),
        Mock(work_dir='x'),
    )
    runner.message_hub.runtime_info = {}
    with pytest.raises(ValueError, match=r'background=True writes to local folders, not to'):
        hook.before_train(runner)


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
    assert f'{LAST} names a file that cannot be taken: ' in warnings()
    assert message in warnings()


def test_signals_are_not_heard_outside_the_main_thread(monkeypatch):
    runner = Mock()
    monkeypatch.setattr('threading.current_thread', lambda: None)
    InterruptHook().before_train(runner)
    assert 'not in the main thread' in runner.logger.warning.call_args.args[0]


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_all_processes_of_a_run_get_the_signal(number, background, tiny_config, trained, tmp_path):
    """As schedulers send it: to the workers of the dataloaders too, again and again."""
    command = [
        sys.executable, '-W', 'ignore', tiny.ROOT / 'tools/train.py', tiny_config,
        '--work-dir', tmp_path, '--resume', 'auto', '--cfg-options',
        'train_dataloader.num_workers=2', 'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=1', f'default_hooks.checkpoint.background={background}',
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


def start(command, *hooks, **environment):
    """Starts a tool in a process of its own, with some hooks more."""
    started = mp.get_context('spawn').Process(target=_run, args=(command, hooks, environment))
    started.start()
    return started


def _run(command, hooks, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    run_tool(*command, hooks=hooks)


class NoteStep(Hook):
    """Writes down behind which step (counted from 1) a rank is."""

    def after_train_iter(self, runner, *args, **kwargs):
        (Path(runner.work_dir) / f'rank_{get_rank()}').write_text(str(runner.iter + 1))


class SaveSlowly(Hook):
    """Takes seconds to write what an interruption saves."""

    def before_train(self, runner):
        own = checkpoints.whole_file

        @contextmanager
        def whole_file(path):
            with own(path) as file:
                time.sleep(5 * (path.name == SAVED))
                yield file

        checkpoints.whole_file = whole_file


@pytest.mark.slow
def test_a_signal_to_one_rank_ends_all_behind_the_same_step(tiny_config, tmp_path):
    """In an epoch, between two accumulated batches.

    Both runs write a checkpoint behind every step: there ranks average what each has of its own.
    """

    def codes(name, *hooks):
        command = ('train.py', tiny_config, '--work-dir', tmp_path / name, '--resume', 'auto',
                   '--launcher', 'pytorch', '--cfg-options', 'optim_wrapper.accumulative_counts=2',
                   'default_hooks.checkpoint.by_epoch=False')  # fmt: skip
        where = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), WORLD_SIZE='2')
        ranks = [
            start(command, NoteStep(), *own, **where, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank, own in enumerate(hooks or [(), ()])
        ]
        ranks[1].join()
        assert name == 'whole' or (tmp_path / name / SAVED).exists()  # else a launcher ends rank 0
        ranks[0].join()
        return [rank.exitcode for rank in ranks]

    told = tmp_path / 'told'
    assert codes('whole') == [0, 0]
    assert codes('told', [SaveSlowly()], [SendItself(signal.SIGUSR1, 2)]) == [EXIT_CODE] * 2
    assert [(told / f'rank_{rank}').read_text() for rank in range(2)] == ['3', '3']
    written = [SAVED, 'iter_1.pth', 'iter_2.pth', 'iter_3.pth']
    assert sorted(path.name for path in told.glob('*.pth')) == written
    meta = torch.load(told / SAVED, weights_only=False)['meta']
    assert (meta['epoch'], meta['iter']) == (1, 3)
    assert codes('told') == [0, 0]
    assert same(content(told / 'iter_4.pth'), content(tmp_path / 'whole' / 'iter_4.pth'))


class KillInWrite(Hook):
    """Kills its process when half of a checkpoint is written."""

    def __init__(self, name):
        self.name = name

    def before_train(self, runner):
        own = checkpoints.whole_file

        @contextmanager
        def whole_file(path):
            with own(path) as file:
                yield Mock(write=partial(_half, file)) if path.name == self.name else file

        checkpoints.whole_file = whole_file


def _half(file, written):
    file.write(written[: len(written) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize('background', [False, True])
def test_killed_in_the_middle_of_a_write_it_ends_with_the_same(
    background, call, tiny_config, trained, tmp_path
):
    command = ('train.py', tiny_config, '--work-dir', tmp_path, '--resume', 'auto',
               '--cfg-options', 'default_hooks.checkpoint.by_epoch=False',
               f'default_hooks.checkpoint.background={background}')  # fmt: skip
    killed = start(command, KillInWrite('iter_3.pth'))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    kept = {path.name: path.stat().st_size for path in tmp_path.glob('*.pth*')}
    assert set(kept) == {'iter_1.pth', 'iter_2.pth', 'iter_3.pth.tmp'}
    assert 0.3 < kept['iter_3.pth.tmp'] / kept['iter_2.pth'] < 0.7
    assert newest_checkpoint(tmp_path)[1]['meta']['iter'] == 2
    call(*command)
    assert not list(tmp_path.glob('*.tmp'))
    assert same(content(tmp_path / 'iter_8.pth'), content(trained / 'epoch_2.pth'))


@pytest.mark.slow
def test_killed_between_two_checkpoints_of_the_survivor_it_ends_with_the_same(call, tmp_path):
    """With an average of its weights."""
    cfg = tiny.config(model__survivor={})
    cfg.custom_hooks[0].end = 0.5  # of 8 iterations
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=3)
    cfg.dump(tmp_path / 'survivor.py')

    def command(name):
        return ('train.py', tmp_path / 'survivor.py', '--work-dir', tmp_path / name, '--resume')

    killed = start(command('killed'), SendItself(signal.SIGKILL, 7))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    name, found = newest_checkpoint(tmp_path / 'killed')
    assert (Path(name).name, found['mmstp']['alone']) == ('iter_6.pth', True)
    for name in ('killed', 'whole'):
        call(*command(name))
    expected, found = (
        content(tmp_path / name / 'iter_8.pth', 'ema_state_dict') for name in ('whole', 'killed')
    )
    assert same(expected, found)


def newest(work_dir):
    return max((path.stat().st_mtime_ns for path in work_dir.glob('*.pth')), default=0)
