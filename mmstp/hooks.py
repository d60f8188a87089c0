"""When the pool shrinks, what is logged and written, and how the best subnet is evaluated."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner, set_random_seed
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .algorithm import STP
from .architecture import Architecture
from .backbones import DynamicBackboneMixin
from .calibration import calibrate
from .files import write_json
from .loading import CheckpointError
from .pool import ShrinkSchedule
from .registry import HOOKS

STATE = 'mmstp'  # where the search's state lies in a checkpoint
STATISTICS = 'mmstp_statistics'  # ... and those of subnets
BEST = 'best_architecture.json'


def stp_of(runner: Runner) -> STP:
    """The runner's model without its wrapper.

    Raises:
        TypeError: If it is not an `STP`.
    """
    model = _unwrapped(runner)
    if not isinstance(model, STP):
        raise TypeError(
            f'the hooks of mmstp need model.type to be mmstp.STP, not {type(model).__name__}'
        )
    return model


def _unwrapped(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def positive(field: str, value: Any) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: Naming the field.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{field}={value!r}: expected a whole number, at least 1')
    return value


@HOOKS.register_module()
class PoolHook(Hook):
    """Shrinks the pool, logs it, keeps it in the checkpoints and writes the best architecture out.

    Args:
        interval: Iterations between two drops (``k`` of Alg. 1); one epoch by default.
        end: The part of the training after which a single architecture is left.

    Raises:
        ValueError: If an argument is out of range.
    """

    priority = 'NORMAL'

    def __init__(self, interval: int | None = None, end: float = 0.6) -> None:
        if not isinstance(end, (int, float)) or not 0 < end <= 1:
            raise ValueError(f'PoolHook.end={end!r}: expected a fraction in (0, 1]')
        self.interval = None if interval is None else positive('PoolHook.interval', interval)
        self.end = end
        self._size: int | None = None  # of the pool when the training started
        self._spread: float | None = None

    def before_train(self, runner: Runner) -> None:
        stp = stp_of(runner)
        stp.supernet.check_intact()
        interval = self.interval or min(len(runner.train_dataloader), runner.max_iters)
        end = max(1, round(self.end * runner.max_iters))
        self._size = self._size or len(stp.pool)
        self._schedule = ShrinkSchedule(self._size, interval, end)
        visits = end / self._size
        if self._size > 1 and visits < 5:
            runner.logger.warning(
                f'the pool has {self._size} architectures and shrinks within {end} iterations: '
                f'{visits:.1f} visits each, fewer than the 5 that scores need to mean anything; '
                + (f'use model.pool.size={end // 10}, or ' if end >= 20 else '')
                + 'train longer'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        stp_of(runner).progress = runner.iter / runner.max_iters

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        stp = stp_of(runner)
        drops = self._schedule.drops(runner.iter + 1, len(stp.pool))
        if drops:
            stp.pool.shrink(drops)
            self._report(runner, stp, runner.iter + 1)
        hub = runner.message_hub
        hub.update_scalar('train/pool_size', len(stp.pool))
        best = stp.pool.scores[stp.pool.best]
        if best is not None:
            hub.update_scalar('train/best_score', best)
        if drops or self._spread is None:
            self._spread = spread(stp)
        hub.update_scalar('train/pool_spread', self._spread)

    def _report(self, runner: Runner, stp: STP, step: int) -> None:
        best, cost = stp.pool.best, stp.supernet.cost
        macs, dense = (int(c) for c in cost.macs([best, stp.supernet.space.largest]))
        score = stp.pool.scores[best]
        runner.logger.info(
            f'pool: {len(stp.pool)} left, best {best} '
            f'{"(not visited yet)" if score is None else f"with score {score:.4f}"}, '
            f'{macs / dense:.2%} of the MACs'
        )
        stages = stp.supernet.space.stages
        runner.visualizer.add_scalars(
            {
                'best/macs_ratio': macs / dense,
                **{f'best/depth/{s.name}': d for s, d in zip(stages, best.depths, strict=True)},
                **{f'best/width/{s.name}': w for s, w in zip(stages, best.widths, strict=True)},
            },
            step=step,
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        stp = stp_of(runner)
        checkpoint[STATE] = {
            'pool': stp.pool.state_dict(),
            'pool_size': self._size or len(stp.pool),
            'best': str(stp.pool.best),
        }
        write_json(Path(runner.work_dir) / BEST, describe(stp, runner.iter))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        stp = stp_of(runner)
        if STATE not in checkpoint:
            raise CheckpointError(
                'the checkpoint holds no state of an STP search: it was not written by a run with '
                'mmstp.PoolHook. A checkpoint of the dense classifier goes into model.pretrained'
            )
        state = checkpoint[STATE]
        stp.pool.load_state_dict(state['pool'])
        for architecture in stp.pool.scores:
            stp.supernet.space.check(architecture)
        self._size = state['pool_size']

    def after_train(self, runner: Runner) -> None:
        self._report(runner, stp_of(runner), runner.iter)
        runner.logger.info('cut it out with: python tools/export.py CONFIG CHECKPOINT --out DIR')


@HOOKS.register_module()
class SubnetEvalHook(Hook):
    """Evaluates the pool's best subnet after the main network, on the same data and metrics.

    Its metrics carry the prefix ``subnet/``. It is cut out, and the statistics of its norm layers
    are estimated anew, so the main network is not touched.

    Args:
        num_images: Training images for the statistics.

    Raises:
        ValueError: If the number is out of range.
    """

    # before the metrics are logged and the best checkpoint is chosen, and while EMA weights, if
    # there are any, are in the model
    priority = 'HIGHEST'

    def __init__(self, num_images: int = 2000) -> None:
        self.num_images = positive('SubnetEvalHook.num_images', num_images)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        if metrics is not None:
            metrics.update(self._evaluate(runner, runner.val_loop))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        if metrics is not None:
            metrics.update(self._evaluate(runner, runner.test_loop))

    @torch.no_grad()
    def _evaluate(self, runner: Runner, loop: Any) -> dict[str, Any]:
        stp = stp_of(runner)
        network: Any = stp.export()
        calibrate_on(network, runner.train_dataloader, self.num_images)
        for module in network.modules():
            module.training = False
        for batch in loop.dataloader:
            loop.evaluator.process(data_samples=network.val_step(batch), data_batch=batch)
        metrics = loop.evaluator.evaluate(len(loop.dataloader.dataset))
        return {f'subnet/{name}': value for name, value in metrics.items()}


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Gives the subnets that `DynamicBackbone`s are running statistics of their own.

    Before training, validation or testing they are estimated on training images, with the
    augmentations and in the batches of the training, where the subnet has none. They are kept in
    the checkpoints, and taken from there.

    Args:
        num_images: Training images for the statistics.

    Raises:
        ValueError: If the number is out of range.
    """

    priority = 'VERY_HIGH'

    def __init__(self, num_images: int = 2000) -> None:
        self.num_images = positive('CalibrationHook.num_images', num_images)

    def before_train(self, runner: Runner) -> None:
        for backbone in dynamic_backbones(runner).values():
            backbone.supernet.check_intact()
        self._calibrate(runner)

    def before_val(self, runner: Runner) -> None:
        self._calibrate(runner)

    def before_test(self, runner: Runner) -> None:
        self._calibrate(runner)

    def _calibrate(self, runner: Runner) -> None:
        for path, backbone in dynamic_backbones(runner).items():
            architecture = backbone.architecture
            if architecture in (backbone.supernet.space.largest, *backbone.supernet.statistics):
                continue
            dataloader = runner.train_dataloader
            number = min(self.num_images, len(dataloader.dataset))
            runner.logger.info(
                f'{path}: estimating statistics of the subnet {architecture} on {number} images'
            )
            calibrate_on(_unwrapped(runner), dataloader, self.num_images, backbone.calibrate)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATISTICS] = {
            path: {str(a): own for a, own in backbone.supernet.statistics.items()}
            for path, backbone in dynamic_backbones(runner).items()
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        for path, backbone in dynamic_backbones(runner).items():
            for text, statistics in checkpoint.get(STATISTICS, {}).get(path, {}).items():
                backbone.supernet.set_statistics(Architecture.parse(text), statistics)


def dynamic_backbones(runner: Runner) -> dict[str, Any]:
    """The runner's `DynamicBackbone`s by their paths.

    Raises:
        TypeError: If there is none.
    """
    model = _unwrapped(runner)
    found = {p: m for p, m in model.named_modules() if isinstance(m, DynamicBackboneMixin)}
    if not found:
        raise TypeError(
            f'mmstp.CalibrationHook: {type(model).__name__} has no mmstp.DynamicBackbone; the '
            'networks of this hook are those'
        )
    return found


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every epoch from the run's seed and the epoch's number.

    So an epoch's random numbers do not depend on what ran before it, and a run that was interrupted
    and resumed at an epoch's end repeats an uninterrupted one.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        set_random_seed(
            runner.seed + runner.epoch,
            diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
        )


@FUNCTIONS.register_module(name='mmstp_seed_worker')
def seed_worker(worker_id: int) -> None:
    """Seeds a dataloader's worker from the epoch's seed and the rank; for ``worker_init_fn``.

    MMEngine's own gives a worker that starts anew the same random numbers in every epoch.
    """
    # PyTorch has seeded the worker from the main process' random state, which is the epoch's
    seed = (torch.initial_seed() + 1_000_003 * int(os.environ.get('RANK', 0))) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def calibrate_on(
    network: Any,
    dataloader: DataLoader,
    num_images: int,
    estimate: Callable[[Iterable[Tensor]], Any] | None = None,
) -> None:
    """Estimates statistics on images of a dataloader's dataset.

    The same images with the same augmentation are drawn every time and on every rank, and the
    random state is left as it was.

    Args:
        network: With a ``data_preprocessor``, as classifiers and detectors have.
        dataloader: The training's; its dataset, batch size and workers are used.
        num_images: How many images; all there are if the dataset has fewer.
        estimate: Takes the batches of images; by default those of a compact classifier are
            estimated.
    """
    if estimate is None:
        estimate = partial(calibrate, network, forward=partial(network, mode='tensor'))
    dataset: Any = dataloader.dataset
    chosen = np.random.default_rng(0).permutation(len(dataset))[:num_images].tolist()
    batches = DataLoader(
        Subset(dataset, chosen),
        batch_size=min(_batch_size(dataloader), len(chosen)),
        num_workers=dataloader.num_workers,
        collate_fn=dataloader.collate_fn,
        drop_last=True,  # every batch weighs the same in a cumulative average
    )
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_random_seed(0)
            estimate(network.data_preprocessor(batch, False)['inputs'] for batch in batches)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _batch_size(dataloader: DataLoader) -> int:
    sampler: Any = dataloader.batch_sampler  # MMDetection's, by aspect ratio, hides it from torch
    return int(dataloader.batch_size or sampler.batch_size)


def spread(stp: STP) -> float:
    """How different the pool's architectures are (Fig. 6): the mean squared distance to their mean.

    Depths are divided by the stage's blocks, so that every number lies between 0 and 1.
    """
    full = np.array([*stp.supernet.space.largest.depths, *stp.supernet.space.largest.widths])
    vectors = np.array([[*a.depths, *a.widths] for a in stp.pool.scores]) / full
    return float(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean())


def describe(stp: STP, iteration: int) -> dict[str, Any]:
    """The best architecture and what is known of it, in plain types."""
    best, cost = stp.pool.best, stp.supernet.cost
    pair = [best, stp.supernet.space.largest]
    macs, params = cost.macs(pair), cost.params(pair)
    return {
        'architecture': str(best),
        'iteration': iteration,
        'pool_size': len(stp.pool),
        'score': stp.pool.scores[best],
        'macs': int(macs[0]),
        'macs_ratio': float(macs[0] / macs[1]),
        'params': int(params[0]),
        'params_ratio': float(params[0] / params[1]),
    }
