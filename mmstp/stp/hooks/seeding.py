"""Random numbers that do not depend on what ran before an epoch."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.runner import Runner, set_random_seed

from ...foreign import randomness
from ...registry import FUNCTIONS, HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds every epoch from the run's seed and the epoch's number.

    So an epoch's random numbers do not depend on what ran before it, and a run that was interrupted
    and resumed at an epoch's end repeats an uninterrupted one.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        set_random_seed(
            runner.seed + runner.epoch,
            diff_rank_seed=randomness(runner).get('diff_rank_seed', False),
        )


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
