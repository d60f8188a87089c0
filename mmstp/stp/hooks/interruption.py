"""What happens when a scheduler ends a run: it saves, and says with its exit code that it did."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...atomic_files import write_text
from ...registry import HOOKS
from ..mid_epoch import agree
from ..of_runner import unwrapped
from .checkpoints import LAST, CheckpointHook

SAVED = 'interrupted.pth'
EXIT_CODE = 75  # `os.EX_TEMPFAIL`, which Windows has not: run it again
SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name)]


class Interrupted(SystemExit):
    """Ends a process whose run the same command goes on with, with `EXIT_CODE`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Inside, a signal ends the process with `EXIT_CODE`; an `InterruptHook` that hears it saves.

    Who is leaving hears no other: schedulers send several, and until a process is gone takes time.
    """
    before: dict[int, Any] = {number: signal.signal(number, _leave) for number in SIGNALS}
    try:
        yield
    except Interrupted:
        before = dict.fromkeys(SIGNALS, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: Any) -> None:
    """At once: foreign code takes an exception, wherever it comes, for one of its own."""
    try:
        os.write(2, f'{signal.Signals(number).name}: nothing to save, leaving\n'.encode())
    finally:  # who reads it (`tee`) may have got the signal too
        os._exit(EXIT_CODE)


@HOOKS.register_module()
class InterruptHook(Hook):
    """On SIGTERM and SIGUSR1 the step is finished, a checkpoint written, and the process left.

    The checkpoint is `SAVED` in the work dir, and what ``--resume`` goes on from. In an evaluation
    it is written at its end; if that takes too long, the checkpoint before counts. All ranks leave
    behind the same step, whichever of them got the signal.

    Raises:
        Interrupted: When all is written.
    """

    priority = 'LOWEST'  # when schedules, averages and other checkpoints have seen the step

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}
        self._process: int | None = None

    def before_train(self, runner: Runner) -> None:
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('signals are not heard: the training is not in the main thread')
            return
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        loops = (
            [runner.train_loop] if runner.val_loop is None else [runner.train_loop, runner.val_loop]
        )
        for loop in loops:
            _leave_signals_to_the_run(loop.dataloader)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() == self._process:
            self._received = number
        elif number == signal.SIGTERM:  # a process forked from this one (a pool's), told to end
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._leave_if_told(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._leave_if_told(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _leave_if_told(self, runner: Runner, iteration: int) -> None:
        received = torch.tensor(self._received)
        all_reduce(received, 'max')
        if not received:
            return
        name = signal.Signals(int(received)).name
        runner.logger.warning(f'{name}: saving behind iteration {iteration}, then leaving')
        agree(runner, unwrapped(runner))
        runner.save_checkpoint(
            runner.work_dir, SAVED, meta={'epoch': runner.epoch, 'iter': iteration},
            backend_args={'backend': 'mmstp'},
        )  # fmt: skip
        if is_main_process():
            write_text(Path(runner.work_dir) / LAST, os.path.join(runner.work_dir, SAVED))
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):  # one may be written in the background
                hook.finish()
        barrier()  # a launcher ends the other ranks, which may not have written yet, with the first
        self.after_train(runner)
        raise Interrupted


def _leave_signals_to_the_run(loader: Any) -> None:
    """From now on the workers of a dataloader hear signals of the process that they work for alone.

    Schedulers send them to every process, and a training whose worker died cannot save any more. A
    process that ends after an error waits for its workers, which it tells so by a signal.
    """
    if not hasattr(signal, 'sigwaitinfo'):
        return  # they hear them all
    loader.worker_init_fn = _Deaf(loader.worker_init_fn)
    kind: Any = type(loader)

    def get_iterator(self: Any) -> Any:
        """Starts workers in which signals wait until `_Deaf` looks at them."""
        method = (self.multiprocessing_context or multiprocessing).get_start_method()
        if method == 'forkserver':  # the server, and all that it forks, would be born so
            return kind._get_iterator(self)
        if method == 'spawn':
            resource_tracker.ensure_running()  # its start opens what is blocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return kind._get_iterator(self)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    # not kept by the loader itself: a cycle would keep its workers
    loader.__class__ = type(kind.__name__, (kind,), {'_get_iterator': get_iterator})


class _Deaf:
    """What a worker begins with: a thread that looks who sends a signal."""

    def __init__(self, start: Callable[[int], Any] | None) -> None:
        self.start = start
        self.run = os.getpid()  # the parent of a worker may be a fork server

    def __call__(self, worker: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a fork server's are born without
        threading.Thread(target=self._hear_the_run, daemon=True).start()
        if self.start is not None:
            self.start(worker)

    def _hear_the_run(self) -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != self.run:
            pass
        os._exit(0)  # as PyTorch's own handler does
