"""What is measured in a process of its own, which is killed when its time is over."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Steps = Callable[[], Iterator[dict[str, Any]]]


def in_process(steps: Steps, seconds: float) -> dict[str, Any]:
    """Runs ``steps`` in a process that is killed with its children when time is over.

    The process is forked, so that it has all imports; call it where no thread computes.

    Args:
        steps: Yields entries of the result, as soon as they are found.
        seconds: That it may take.

    Returns:
        What was found; where something failed with its ``error`` and, as ``log``, what it said.
    """
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    found: dict[str, Any] = {}
    with tempfile.TemporaryFile() as log:
        process = context.Process(target=_child, args=(steps, sender, log.fileno()))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # of threads, from Python 3.12 on
            process.start()
        sender.close()
        end = time.monotonic() + seconds
        try:
            while 'error' not in found and 'done' not in found:
                if not receiver.poll(max(0.0, end - time.monotonic())):
                    found['error'] = f'more than {seconds:g} s'
                else:
                    found.update(json.loads(receiver.recv_bytes()))
        except (EOFError, OSError):  # it died, perhaps while it was sending
            found['error'] = ''
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
            receiver.close()
        if 'error' in found:
            log.seek(0)
            found['log'] = log.read().decode(errors='replace')
            found['error'] = found['error'] or _death(process.exitcode or 0, found['log'])
    return found


def _child(steps: Steps, sender: Connection, log: int) -> None:
    os.setsid()  # a group of its own, to be killed as a whole
    with suppress(OSError):  # where memory runs out, this process goes first
        Path('/proc/self/oom_score_adj').write_text('1000')
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout = sys.stderr = os.fdopen(2, 'w', buffering=1, closefd=False)
    faulthandler.disable()  # the last line that is said is reported
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    try:
        for found in steps():
            sender.send_bytes(json.dumps(found).encode())
        last = {'done': True}
    except BaseException as error:
        traceback.print_exc()
        last = {'error': f'{type(error).__name__}: {error}'}
    sender.send_bytes(json.dumps(last).encode())


def _death(code: int, log: str) -> str:
    """How a process ended that did not say so itself."""
    said = next((f': {line}' for line in reversed(log.splitlines()) if line.strip()), '')
    how = f'killed by {signal.Signals(-code).name}' if code < 0 else f'exited with code {code}'
    return how + said
