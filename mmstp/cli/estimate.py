"""What a run would cost: a few of its steps, timed beside those of the dense network."""

from __future__ import annotations

import copy
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from numpy.typing import NDArray

from ..deploy.timing import Setting
from ..stp.hooks.pool import PoolHook
from ..stp.hooks.statistics import batch_size_of
from ..stp.of_runner import stp_of
from .launch import check_data, is_detection

WITHOUT_DATA = 1000  # steps, where nobody knows how many an epoch has


@dataclass(frozen=True)
class Batches:
    """What steps are tried with.

    Attributes:
        content: Some batches, as a dataloader gives them.
        source: Where they are from.
        loading: Seconds for one of them, with as many workers as the config has.
        beside: Whether workers load while a step runs.
        epoch: Steps of an epoch; None where the data are not there.
    """

    content: list[Any]
    source: str
    loading: float = 0.0
    beside: bool = True
    epoch: int | None = None

    def wait(self, step: float) -> float:
        """Seconds of a step with the data for it."""
        return max(step, self.loading) if self.beside else step + self.loading


def estimate(config: Config, rounds: int) -> str:
    """Builds a run, tries some steps of its phases, and tells what all of them will take.

    Args:
        config: Of an STP run.
        rounds: How many steps of each phase are timed, in turn with the dense network's.

    Raises:
        FileNotFoundError: If the data of a detector's run are not there: its steps depend on them.
    """
    missing = _missing(config)
    with tempfile.TemporaryDirectory() as folder:
        config = copy.deepcopy(config)
        config.merge_from_dict(
            dict(work_dir=folder, log_level='ERROR', launcher='none', resume=False, load_from=None)
        )
        runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
        return _measured(runner, missing, rounds)


def _missing(config: Config) -> str:
    """Why the training data cannot be read, or nothing."""
    try:
        check_data(config, 'train_dataloader')
    except FileNotFoundError as error:
        if is_detection(config):
            raise
        return str(error)
    return ''


def _measured(runner: Runner, missing: str, rounds: int) -> str:
    stp: Any = stp_of(runner)
    batches = _random_batches(runner, rounds) if missing else _batches(runner, rounds)
    stp.driver = hook = next((hook for hook in runner.hooks if isinstance(hook, PoolHook)), None)
    runner.message_hub.update_info_dict(dict(iter=0, max_iters=1))  # a warmup asks for it

    def survivor() -> Any:
        alone = copy.deepcopy(stp)
        for pool in alone.pools.values():
            pool.shrink(len(pool) - 1)
        alone.go_alone()
        if alone.teacher is None:
            alone.supernet.model.to('meta')
        return alone

    tried = {'search': _tried(lambda: stp, runner, batches, since=0)}
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tried['dense'] = _tried(lambda: stp.export(stp.supernet.space.largest), runner, batches)
    iterations = WITHOUT_DATA if batches.epoch is None else runner.max_iters
    assert hook is not None  # else no step could be tried
    begin, end = hook.search_span(stp, iterations)
    steps = {'dense': begin, 'search': iterations - begin}
    if stp.survivor is not None:
        tried['survivor'] = _tried(survivor, runner, batches)
        steps |= {'search': end - begin, 'survivor': iterations - end}

    on_gpu = next(stp.parameters()).is_cuda
    setting = Setting(device='cuda' if on_gpu else 'cpu', threads=torch.get_num_threads())
    seconds = setting.seconds([step for step, _ in tried.values()], rounds, warmup=0)
    lines = [
        f'cost of the run on {torch.cuda.get_device_name() if on_gpu else "the CPU"} in one '
        f'process: {rounds} steps of each phase with {batches.source}',
        *([f'         ({missing})'] if missing else []),
        *_table(dict(zip(tried, seconds.T, strict=True)), steps, batches),
    ]
    if on_gpu:
        peaks = [f'{name} {peak / 2**30:.2f} GiB' for name, (_, peak) in tried.items()]
        lines.append(f'memory   {", ".join(peaks)}: the most that PyTorch had allocated')
    else:
        lines.append(
            f'memory   {process / 2**30:.2f} GiB: the most that this process had, from building '
            'the run to its steps of the search; of the other phases it is not known on a CPU'
        )
    lines.append('not counted: validation, checkpoints, a screening of the pool')
    return '\n'.join(lines)


def _batches(runner: Runner, count: int) -> Batches:
    loader = runner.train_dataloader
    dataset: Any = loader.dataset
    size, workers = batch_size_of(loader), loader.num_workers
    places = np.random.default_rng(0).integers(len(dataset), size=(count, size)).tolist()
    start = time.perf_counter()
    content = [loader.collate_fn([dataset[place] for place in batch]) for batch in places]
    seconds = (time.perf_counter() - start) / count
    source = f'batches of {size} images of train_dataloader'
    return Batches(content, source, seconds / max(1, workers), workers > 0, len(loader))


def _random_batches(runner: Runner, count: int) -> Batches:
    shape = tuple(stp_of(runner).supernet.inputs[0].shape[1:])
    size = runner.cfg.train_dataloader.batch_size
    content = [
        {
            'inputs': torch.randint(256, (size, *shape)),
            'data_samples': [DataSample().set_gt_label(0) for _ in range(size)],
        }
        for _ in range(count)
    ]
    return Batches(content, f'batches of {size} random images of shape {shape}')


def _tried(
    build: Callable[[], Any], runner: Runner, batches: Batches, since: int | None = None
) -> tuple[Callable[[], object], int]:
    """A step of a network's training, made twice, and the bytes that it needs on a GPU at most.

    Its learning rate is 0: the network stays as it is.

    Args:
        build: Makes the network.
        runner: Whose optimizer it gets.
        batches: Taken in turn.
        since: What was allocated on the GPU before there was the network; None: what is now.
    """
    allocated = torch.cuda.memory_allocated() if since is None else since
    network = build().train()
    optimizer = build_optim_wrapper(network, copy.deepcopy(runner.cfg.optim_wrapper))
    for group in optimizer.param_groups:
        group['lr'] = 0.0
    content = cycle(batches.content)

    def step() -> object:
        # what prepares images may change a batch in place
        return network.train_step(copy.deepcopy(next(content)), optimizer)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    step()
    step()
    return step, torch.cuda.max_memory_allocated() - allocated


def _table(
    seconds: Mapping[str, NDArray[np.float64]], steps: Mapping[str, int], batches: Batches
) -> list[str]:
    """Steps beside the dense network's, and what the schedule makes of them."""
    usual = {name: float(np.median(each)) for name, each in seconds.items()}
    lines = ['', 'phase    step        in dense steps      epoch           steps       in all']
    for name, each in seconds.items():
        low, middle, high = np.quantile(each / seconds['dense'], (0.25, 0.5, 0.75))
        wait, own = batches.wait(usual[name]), steps.get(name)
        lines.append(
            f'{name:8s} {usual[name]:8.4f} s  {f"{middle:.2f} ({low:.2f}–{high:.2f})":19s} '
            f'{_span(wait * batches.epoch) if batches.epoch else "not known":15s} '
            + (f'{own:<11,} {_span(wait * own)}' if own else '–')
        )
    total = sum(batches.wait(usual[name]) * own for name, own in steps.items())
    iterations = sum(steps.values())
    before = steps.get('dense', 0)  # what the main network is trained alone, at first
    whole = sum(
        batches.wait(usual[name]) * own
        for name, own in (('dense', before), ('search', iterations - before))
    )
    dense = batches.wait(usual['dense']) * iterations
    run = 'the run' if batches.epoch else f'{iterations:,} steps, divided as the run is'
    lines += ['', f'total    {_span(total)} for {run}: {total / dense:.2f} of dense training']
    if 'survivor' in steps:
        says = 'saves' if total <= whole else 'adds'
        part = abs(1 - total / whole)
        lines.append(f'         the survivor phase {says} {part:.0%} of {_span(whole)}')
    if batches.epoch:
        beside = 'while steps run' if batches.beside else 'between the steps'
        slow = batches.beside and batches.loading > min(usual.values())
        lines.append(
            f'data     {batches.loading:.4f} s for a batch, {beside}'
            + ': slower than steps are, take more workers' * slow
        )
    return lines


def _span(seconds: float) -> str:
    """Hours, minutes and seconds, or seconds alone."""
    return str(timedelta(seconds=round(seconds))) if seconds >= 60 else f'{seconds:.2f} s'
