"""Runs of MMEngine's runner in tests: whole, interrupted, logged, of two ranks."""

import copy
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner


def train(cfg: Config) -> Runner:
    """A run from its beginning, or from where its config says, to its end."""
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.train()
    return runner


class StopBefore(Hook):
    """Ends a run as Ctrl-C does, when an epoch (counted from 0) begins."""

    priority = 'LOWEST'

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == self.epoch:
            raise KeyboardInterrupt


def assert_resumed_is_whole(
    config: Callable[..., Config], work_dir: Path, epoch: int, options: dict, whole: Runner
) -> None:
    """A run that is stopped before an epoch and resumed ends with what one to the end does.

    Args:
        config: Makes the config of a run from its work dir and options.
        work_dir: For the runs.
        epoch: Counted from 0.
        options: Of the config; ``ema``: with an average of the weights.
        whole: A run to its end without options.
    """

    def made(name: str) -> Config:
        cfg = config(work_dir / name, **{k: v for k, v in options.items() if k != 'ema'})
        if 'ema' in options:
            cfg.custom_hooks.insert(0, dict(type='EMAHook', momentum=0.1))
        return cfg

    expected = train(made('whole')) if options else whole
    cfg = made('resumed')
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.register_hook(StopBefore(epoch))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    cfg.resume = True
    found = train(cfg)
    last = f'epoch_{cfg.train_cfg.max_epochs}.pth'
    for name in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        a, b = (
            torch.load(Path(r.work_dir) / last, weights_only=False).get(name)
            for r in (expected, found)
        )
        assert same(a, b), name


class StopAfter(Hook):
    """The same behind an iteration (counted from 1), when its checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.iteration:
            raise KeyboardInterrupt


@OPTIM_WRAPPERS.register_module()
class Scaled(AmpOptimWrapper):
    """MMEngine's for half precision on the CPU, where it has none; ``loss_scale`` as there."""

    def __init__(self, loss_scale: float | dict[str, Any], **options: Any) -> None:
        OptimWrapper.__init__(self, **options)
        fixed = not isinstance(loss_scale, dict)
        scaling = dict(init_scale=loss_scale) if fixed else loss_scale
        self.loss_scaler = torch.amp.GradScaler('cpu', **scaling)
        self._scale_update_param = loss_scale if fixed else None
        self.cast_dtype = torch.bfloat16


def same(a: Any, b: Any) -> bool:
    """Whether two contents of checkpoints are equal, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def scalars(work_dir: str | Path) -> list[dict[str, Any]]:
    """What a run has logged."""
    (file,) = Path(work_dir).glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def distribute(cfg: Config) -> None:
    """Makes it the config of several processes on the CPU, as ``tools/train.py`` does."""
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None,
        find_unused_parameters=False,
    )  # fmt: skip


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return int(free.getsockname()[1])


@contextmanager
def one_of(ranks: int, rank: int, port: int) -> Iterator[None]:
    """Inside, this process is one of several that have one thread each."""
    os.environ.update(
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks),
        LOCAL_RANK=str(rank),
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=ranks)
    yield
    torch.distributed.destroy_process_group()


one_of_two = partial(one_of, 2)
