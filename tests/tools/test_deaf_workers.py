"""Signals in the workers of a dataloader: theirs are those of the run alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker

import pytest
from torch.utils.data import DataLoader

from mmstp.stp.hooks import interruption
from mmstp.stp.hooks.interruption import SIGNALS, _leave_signals_to_the_run
from tests import tiny


def loader(**options):
    found = DataLoader(range(8), num_workers=2, **options)
    _leave_signals_to_the_run(found)
    return found


def send(number, pid):
    """From a process that is not the worker's parent."""
    subprocess.run(['kill', f'-{int(number)}', str(pid)], check=True)


@pytest.mark.parametrize(
    ('number', 'method'),
    [*((number, 'fork') for number in SIGNALS), (SIGNALS[0], 'forkserver'), (SIGNALS[0], 'spawn')],
)
def test_they_do_not_hear_what_a_scheduler_sends_to_all_and_end_when_the_run_ends_them(
    number, method
):
    found = loader(persistent_workers=True, multiprocessing_context=method)
    assert len(list(found)) == 8
    workers = found._iterator._workers
    for worker in workers:
        send(number, worker.pid)
    assert len(list(found)) == 8
    assert [worker.pid for worker in found._iterator._workers] == [w.pid for w in workers]
    for worker in workers:
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0


def test_nor_in_their_first_moment(monkeypatch):
    own = interruption._Deaf.__call__

    def told_before(self, worker):
        os.kill(os.getpid(), signal.SIGTERM)
        own(self, worker)

    monkeypatch.setattr(interruption._Deaf, '__call__', told_before)
    assert len(list(loader())) == 8
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(SIGNALS)


TOLD_WHILE_IT_LOADS = """
import os, signal
if __name__ == '__mp_main__':  # a worker, before PyTorch has it begin
    os.kill(os.getpid(), signal.SIGTERM)
if __name__ == '__main__':
    from tests.tools.test_deaf_workers import loader
    assert len(list(loader(multiprocessing_context='spawn'))) == 8
"""


@pytest.mark.slow
def test_nor_while_they_load_the_packages(tmp_path):
    """In a process that begins: the first that it spawns starts a tracker."""
    (tmp_path / 'run.py').write_text(TOLD_WHILE_IT_LOADS)
    path = os.environ | {'PYTHONPATH': str(tiny.ROOT)}
    subprocess.run([sys.executable, tmp_path / 'run.py'], check=True, timeout=240, env=path)


def test_what_the_same_server_forks_ends_too():
    """It is started with the first workers, and would hand on that it is deaf."""
    resource_tracker.ensure_running()  # its start opens what is blocked
    context = multiprocessing.get_context('forkserver')
    assert len(list(loader(multiprocessing_context=context))) == 8
    process = context.Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(30)
    assert process.exitcode == -signal.SIGTERM


FAILING = """
from tests.tools.test_deaf_workers import loader
for batch in loader(persistent_workers=True):
    raise ValueError('an error of the training')
"""


def test_a_run_that_fails_does_not_wait_for_them():
    """The trace of an error keeps the iterator, which would end them, until the process is gone."""
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', FAILING], cwd=tiny.ROOT, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.endswith('ValueError: an error of the training\n')
