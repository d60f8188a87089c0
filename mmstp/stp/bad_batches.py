"""Batches whose loss is not finite: left out of the training and counted; too many end it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ..errors import CheckpointError
from .options import refuse_not_finite


class BadBatches:
    """What a run has met of them.

    Attributes:
        patience: How many in a row end the run. 1: the first does, as where nobody keeps the
            optimizer from a step (`guard`).
        total: How many there were.
        in_a_row: How many there were since the last good one.
    """

    def __init__(self) -> None:
        self.patience = 1
        self.total = 0
        self.in_a_row = 0
        self._good = False  # whether there was a good one since the last step
        self._before: list[tuple[Tensor, Tensor]] = []

    def watch(self, network: nn.Module) -> None:
        """A batch begins: keeps what its pass may change, running statistics above all."""
        self._before = [(buffer, buffer.clone()) for buffer in network.buffers()]

    def leave_out(self, losses: Mapping[str, float], images: Tensor) -> bool:
        """Whether the batch is to be left out by its losses, the same numbers on all ranks.

        What its pass has changed is put back then.

        Raises:
            ValueError: If it is one too many.
        """
        watched, self._before = self._before, []
        try:
            refuse_not_finite(losses, images)
        except ValueError as error:
            with torch.no_grad():
                for buffer, before in watched:
                    buffer.copy_(before)
            self.total += 1
            self.in_a_row += 1
            if self.in_a_row < self.patience:
                MMLogger.get_current_instance().warning(f'a batch is left out: {error}')
                return True
            if self.patience == 1:
                raise
            raise ValueError(
                f'{error}. {self.in_a_row} batches in a row were so (PoolHook.patience), '
                f'{self.total} since the run began; the weights are those before them'
            ) from error
        self.in_a_row, self._good = 0, True
        return False

    def guard(self, optimizer: OptimWrapper) -> None:
        """Keeps an optimizer from steps without a good batch.

        Momentum and weight decay would change the weights even if all gradients are zero.
        """
        own = optimizer.step

        @functools.wraps(own)  # schedulers have marked it, and miss the mark
        def step(**options: Any) -> None:
            if self._good:
                own(**options)
            self._good = False

        optimizer.step = step

    def state_dict(self) -> dict[str, int]:
        """What a resumed run has to know."""
        return {'total': self.total, 'in_a_row': self.in_a_row, 'good': int(self._good)}

    def load_state_dict(self, state: Any) -> None:
        """Takes over what `state_dict` gave; a `CheckpointError` for anything else."""
        names = ('total', 'in_a_row', 'good')
        if not isinstance(state, Mapping) or not all(type(state.get(n)) is int for n in names):
            raise CheckpointError(f'the state of the search is damaged: bad_batches is {state!r}')
        self.total, self.in_a_row = state['total'], state['in_a_row']
        self._good = bool(state['good'])


def no_loss(network: nn.Module) -> dict[str, Tensor]:
    """A loss whose gradients are zero, of every parameter: DDP waits for all of them."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return {'loss_left_out': torch.stack([(0 * parameter).sum() for parameter in trained]).sum()}
