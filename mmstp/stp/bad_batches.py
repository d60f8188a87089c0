"""Batches and steps that are not finite: left out and counted; too many of them end the run."""

from __future__ import annotations

import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from ..errors import CheckpointError, NotFiniteError
from .options import refuse_not_finite

_STATE = ('total', 'in_a_row', 'steps_in_a_row', 'good')


class BadBatches:
    """What a run has met of them.

    Attributes:
        patience: How many in a row end the run. 1: the first does, as where nobody keeps the
            optimizer from a step (`guard`).
        total: How many batches and steps there were.
        in_a_row: How many batches there were since the last good one.
        steps_in_a_row: How many steps there were since the last good one.
    """

    def __init__(self) -> None:
        self.patience = 1
        self.total = 0
        self.in_a_row = 0
        self.steps_in_a_row = 0
        self._good = False  # whether there was a good batch since the last step
        self._step_made = False  # by an optimizer whose scaler leaves steps out
        self._watched: list[tuple[Tensor, Tensor]] = []  # with what each was

    def watch(self, network: nn.Module) -> None:
        """A batch begins: keeps what its pass may change, running statistics above all."""
        buffers = list(network.buffers())
        kept = [buffer for buffer, _ in self._watched]
        if len(kept) == len(buffers) and all(map(operator.is_, kept, buffers)):
            _copy((before, buffer) for buffer, before in self._watched)
        else:  # the first batch, or the survivor's first
            self._watched = [(buffer, buffer.clone()) for buffer in buffers]

    def leave_out(self, losses: Mapping[str, float], images: Tensor) -> bool:
        """Whether the batch is to be left out by its losses, the same numbers on all ranks.

        What its pass has changed is put back then.

        Raises:
            NotFiniteError: If it is one too many.
        """
        try:
            refuse_not_finite(losses, images)
        except ValueError as error:
            reason = str(error)
        else:
            self.in_a_row, self._good = 0, True
            return False
        _copy(self._watched)
        self.in_a_row += 1
        self._count('batch', self.in_a_row, reason)
        return True

    def _count(self, what: str, in_a_row: int, reason: str) -> None:
        self.total += 1
        if in_a_row < self.patience:
            MMLogger.get_current_instance().warning(f'a {what} is left out: {reason}')
            return
        if self.patience > 1:
            reason += (
                f'. So it was {in_a_row} times in a row (PoolHook.patience), {self.total} since '
                'the run began; the weights are those before them'
            )
        raise NotFiniteError(reason)

    def guard(self, optimizer: OptimWrapper, network: nn.Module) -> None:
        """Keeps an optimizer from steps without a good batch, or with bad gradients.

        Momentum and weight decay would change the weights even if all gradients are zero.

        Args:
            optimizer: Whose ``step`` is another from here on. It raises a `NotFiniteError` if there
                are too many in a row.
            network: What it trains.
        """
        own = optimizer.step
        if isinstance(optimizer, AmpOptimWrapper):
            optimizer.optimizer.register_step_post_hook(self._made)

        @functools.wraps(own)  # schedulers have marked it, and miss the mark
        def step(optimizer: OptimWrapper, **options: Any) -> None:
            if self._good and isinstance(optimizer, AmpOptimWrapper):
                self._scaled(optimizer, functools.partial(own, **options))
            elif self._good and self._gradients_are_finite(network):
                own(**options)
            self._good = False

        optimizer.step = MethodType(step, optimizer)  # what a scheduler can mark, that comes later

    def _made(self, *_: Any) -> None:
        self._step_made = True

    def _scaled(self, optimizer: AmpOptimWrapper, step: Callable[[], None]) -> None:
        """With AMP it is the scaler that looks at the gradients, and leaves a step out.

        That is no fault while it looks for its scale: as long as that falls, and is above 1.
        """
        scaler, weight = optimizer.loss_scaler, optimizer.param_groups[0]['params'][0]
        one = torch.ones((), device=weight.device)
        self._step_made, scaled = False, scaler.scale(one)  # read where a step is left out
        step()
        if self._step_made:
            self.steps_in_a_row = 0
            return
        scale, before = scaler.get_scale(), scaled.item()
        if not 1 < scale < before:
            self.steps_in_a_row += 1
            self._count(
                'step',
                self.steps_in_a_row,
                f'the loss is finite, and gradients are not, with the loss times {before:g}, and '
                f'the scale is {scale:g} now (optim_wrapper.loss_scale): training diverged (a '
                'smaller learning rate, clipped gradients)',
            )

    def _gradients_are_finite(self, network: nn.Module) -> bool:
        """The same on all ranks, whose gradients are the same; else it is counted."""
        named = network.named_parameters()
        gradients = {name: p.grad for name, p in named if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        if norm.isfinite():
            self.steps_in_a_row = 0
            return True
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        of = f'those of {", ".join(bad[:3])}{", …" * (len(bad) > 3)}' if bad else 'their squares'
        self.steps_in_a_row += 1
        self._count(
            'step',
            self.steps_in_a_row,
            f'the loss is finite, and gradients are not ({of}): training diverged (a smaller '
            'learning rate, clipped gradients), or half precision needs a scale of the loss '
            "(optim_wrapper.type='AmpOptimWrapper')",
        )
        return False

    def state_dict(self) -> dict[str, int]:
        """What a resumed run has to know."""
        return {
            'total': self.total,
            'in_a_row': self.in_a_row,
            'steps_in_a_row': self.steps_in_a_row,
            'good': int(self._good),
        }

    def load_state_dict(self, state: Any) -> None:
        """Takes over what `state_dict` gave; a `CheckpointError` for anything else."""
        if not isinstance(state, Mapping) or not all(type(state.get(n)) is int for n in _STATE):
            raise CheckpointError(f'the state of the search is damaged: bad_batches is {state!r}')
        self.total, self.in_a_row, self.steps_in_a_row, good = (state[name] for name in _STATE)
        self._good = bool(good)


@torch.no_grad()
def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copies the second of each pair into the first, those of one kind in one call."""
    kinds = defaultdict(list)
    for to, origin in pairs:
        kinds[to.device, to.dtype].append((to, origin))
    for alike in kinds.values():
        torch._foreach_copy_([to for to, _ in alike], [origin for _, origin in alike])


def no_loss(network: nn.Module) -> dict[str, Tensor]:
    """A loss whose gradients are zero, of every parameter: DDP waits for all of them."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return {'loss_left_out': torch.stack([(0 * parameter).sum() for parameter in trained]).sum()}
