"""When the pool shrinks, what is logged and written of it, and its place in checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...atomic_files import write_json
from ...config_fields import positive
from ...errors import CheckpointError
from ...registry import HOOKS
from ..algorithm import STP, stp_of
from ..pool import ShrinkSchedule

STATE = 'mmstp'  # where the search's state lies in a checkpoint
BEST = 'best_architecture.json'


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
        if stp.driver not in (None, self):
            raise RuntimeError('there are two PoolHooks in custom_hooks: the pool has one driver')
        if 'train_step' in vars(runner.model):
            raise RuntimeError(
                'compile=…: torch.compile cannot follow a network that is another subnet in every '
                'pass. Leave it out of the config; exported networks can be compiled'
            )
        stp.driver = self
        interval = self.interval or min(len(runner.train_dataloader), runner.max_iters)
        end = max(1, round(self.end * runner.max_iters))
        self._size = self._size or len(stp.pool)
        self._schedule = ShrinkSchedule(self._size, interval, end)
        visits = end / self._size
        if self._size > 1 and visits < 5:
            smaller = f'use model.pool.size={end // 10}, or ' if end >= 20 else ''
            runner.logger.warning(
                f'the pool has {self._size} architectures and shrinks within {end} iterations: '
                f'{visits:.1f} visits each, fewer than the 5 that scores need to mean anything; '
                f'{smaller}train longer'
            )

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
        best = stp.pool.best
        ratio = stp.supernet.describe(best)['macs_ratio']
        score = stp.pool.scores[best]
        scored = '(not visited yet)' if score is None else f'with score {score:.4f}'
        runner.logger.info(
            f'pool: {len(stp.pool)} left, best {best} {scored}, {ratio:.2%} of the MACs'
        )
        names = [stage.name for stage in stp.supernet.space.stages]
        scalars = {
            'best/macs_ratio': ratio,
            **{f'best/depth/{name}': d for name, d in zip(names, best.depths, strict=True)},
            **{f'best/width/{name}': w for name, w in zip(names, best.widths, strict=True)},
        }
        runner.visualizer.add_scalars(scalars, step=step)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        stp = stp_of(runner)
        _refuse_weights(stp)
        checkpoint[STATE] = {
            'pool': stp.pool.state_dict(),
            'pool_size': self._size or len(stp.pool),
            'best': str(stp.pool.best),
        }
        found = {
            **stp.supernet.describe(stp.pool.best),
            'iteration': runner.iter,
            'pool_size': len(stp.pool),
            'score': stp.pool.scores[stp.pool.best],
        }
        write_json(Path(runner.work_dir) / BEST, found)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        stp = stp_of(runner)
        if STATE not in checkpoint:
            raise CheckpointError(
                'the checkpoint holds no state of an STP search: it was not written by a run with '
                'mmstp.PoolHook. A checkpoint of the dense classifier goes into model.pretrained'
            )
        state = checkpoint[STATE]
        read = copy.deepcopy(stp.pool)  # nothing is taken over of what is damaged
        read.load_state_dict(state['pool'])
        pool, space = list(read.scores), stp.supernet.space
        for architecture in pool:
            space.check(architecture)
        costs = stp.supernet.cost.count(pool, stp.budget.metric)
        for place in np.flatnonzero(~stp.budget.meets(costs))[:1].tolist():
            raise CheckpointError(
                f'the checkpoint has {pool[place]} in its pool, of {costs[place]:,} '
                f'{stp.budget.metric}: that does not meet the budget of {stp.budget.target:,.0f} '
                f'within {stp.budget.tolerance:.1%}. It needs the config of its own run'
            )
        size = state['pool_size']
        if type(size) is not int or not len(pool) <= size <= space.size:
            raise CheckpointError(
                f'the checkpoint says that its pool began with {size!r} architectures; expected a '
                f'whole number from {len(pool)} to {space.size}'
            )
        stp.pool.load_state_dict(state['pool'])
        self._size = size

    def after_train(self, runner: Runner) -> None:
        self._report(runner, stp_of(runner), runner.iter)
        runner.logger.info('cut it out with: python tools/export.py CONFIG CHECKPOINT --out DIR')


def _refuse_weights(stp: STP) -> None:
    """Raises where weights are not finite: a checkpoint of them would be taken for a good one."""
    for key, tensor in stp.model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f'{key} holds numbers that are not finite: nothing is saved, and the checkpoint '
                'before stays the last. Training diverged in the step before, or an image or a '
                'label holds such numbers'
            )


def spread(stp: STP) -> float:
    """How different the pool's architectures are (Fig. 6): the mean squared distance to their mean.

    Depths are divided by the stage's blocks, so that every number lies between 0 and 1.
    """
    full = np.array([*stp.supernet.space.largest.depths, *stp.supernet.space.largest.widths])
    vectors = np.array([[*a.depths, *a.widths] for a in stp.pool.scores]) / full
    return float(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean())
