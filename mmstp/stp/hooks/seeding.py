"""Random numbers that do not depend on what ran before, and epochs that begin in their middle."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.runner import EpochBasedTrainLoop, Runner, set_random_seed

from ...errors import CheckpointError
from ...foreign import randomness
from ...registry import FUNCTIONS, HOOKS
from ..places import PlacedBatches, place_batches, seed_host, seed_of

ORDER = 'mmstp_order'  # where the order of the samples lies in a checkpoint


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every epoch, every step and every sample from the run's seed and where they stand.

    So a run that was interrupted and resumed, in the middle of an epoch too, repeats an
    uninterrupted one: the samples that were trained are left out, and the others are augmented as
    they would have been, in whatever worker.

    It is for loops by epoch. In loops by iteration it seeds the steps; there the samples, which
    MMEngine leaves out itself, have other random numbers when a run was resumed.
    """

    def __init__(self) -> None:
        self._order: dict[str, Any] = {}  # of the checkpoint that was loaded
        self._batches: PlacedBatches | None = None
        self._start = 0  # of the epoch that begins next

    def before_train(self, runner: Runner) -> None:
        loop: Any = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        seed = torch.tensor(runner.seed)
        broadcast(seed)  # ranks may have seeds of their own (``diff_rank_seed``)
        batches = self._batches = place_batches(loop.dataloader, int(seed))
        self._start = self._find_start(runner, len(loop.dataloader))
        if batches is None:
            return
        sampler: Any = getattr(batches, 'sampler', None)
        if runner.iter and 'seed' in self._order and hasattr(sampler, 'seed'):
            # a run whose config names no seed has another one whenever it is started
            sampler.seed = self._order['seed']
        own = loop.run_iter

        def run_iter(idx: int, data_batch: Any) -> None:
            own(batches.start + idx, data_batch)  # the loop counts from 0

        loop.run_iter = run_iter

    def _find_start(self, runner: Runner, length: int) -> int:
        """How many batches of its first epoch a run has trained already."""
        then = self._order.get('batches', length)
        start = runner.iter - runner.epoch * then
        if then != length:
            raise CheckpointError(
                f'the checkpoint was saved behind iteration {runner.iter} of a run whose epochs '
                f'had {then} batches; here an epoch has {length}. The search and the schedules '
                'count iterations: to go on, the images of all ranks together (batch_size times '
                'ranks) and the data set have to be the same as in the run before'
            )
        if start and (self._batches is None or not 0 < start <= length):
            raise CheckpointError(
                f'the checkpoint was saved behind iteration {runner.iter}, in the middle of epoch '
                f'{runner.epoch + 1}, and this dataloader has no batches of indices, of which some '
                'could be left out: take a checkpoint of the end of an epoch'
            )
        if start:
            runner.logger.info(f'epoch {runner.epoch + 1} goes on behind batch {start} of {length}')
        return start

    def before_train_epoch(self, runner: Runner) -> None:
        set_random_seed(
            runner.seed + runner.epoch,
            diff_rank_seed=randomness(runner).get('diff_rank_seed', False),
        )
        if self._batches is not None:
            self._batches.begin(runner.epoch, self._start)
            self._start = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed = seed_of(runner.seed, 'step', runner.iter)
        seed_host(seed)
        if get_device() != 'cpu':
            torch.manual_seed(seed)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self._batches is not None:
            sampler: Any = getattr(self._batches, 'sampler', None)
            checkpoint[ORDER] = {'batches': len(self._batches)}
            if hasattr(sampler, 'seed'):
                checkpoint[ORDER]['seed'] = sampler.seed

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._order = checkpoint.get(ORDER, {})


@FUNCTIONS.register_module()
@MMENGINE_FUNCTIONS.register_module(name='mmstp_seed_worker')  # as configs had it at first
def seed_worker(worker_id: int) -> None:
    """Seeds a dataloader's worker from the epoch's seed and the rank; for ``worker_init_fn``.

    MMEngine's own gives a worker that starts anew the same random numbers in every epoch.
    """
    # PyTorch has seeded the worker from the main process' random state, which is the epoch's
    seed = (torch.initial_seed() + 1_000_003 * int(os.environ.get('RANK', 0))) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def refuse_unplaced(runner: Runner) -> None:
    """Raises where MMEngine would train the first part of an epoch again."""
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return
    if any(isinstance(hook, EpochSeedHook) for hook in runner.hooks):
        return
    if runner.iter % len(runner.train_dataloader):
        raise CheckpointError(
            f'the checkpoint was saved in the middle of epoch {runner.epoch + 1} (iteration '
            f"{runner.iter}). Add dict(type='mmstp.EpochSeedHook') to custom_hooks, which goes on "
            'there, or take a checkpoint of the end of an epoch'
        )
