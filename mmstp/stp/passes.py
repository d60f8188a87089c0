"""The backward passes of a step: one of the sum of its losses, or one behind each forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from ..errors import OptionError

Scale = Callable[[Tensor], Tensor]


def as_it_is(loss: Tensor) -> Tensor:
    """No scale."""
    return loss


def scale_of(optimizer: OptimWrapper) -> Scale:
    """What an optimizer multiplies losses by before their backward pass, for half precision.

    Raises:
        RuntimeError: If it has a backward pass of its own kind.
    """
    if isinstance(optimizer, AmpOptimWrapper):
        scale: Scale = optimizer.loss_scaler.scale
        return scale
    if type(optimizer).backward is not OptimWrapper.backward:
        raise RuntimeError(
            f"model.passes='apart' cannot do the backward pass of {type(optimizer).__name__}: "
            "take OptimWrapper or AmpOptimWrapper, or model.passes='together'"
        )
    return as_it_is


class Together:
    """One backward pass of the sum of all losses: every forward pass is kept until then."""

    def __init__(self, network: nn.Module, scale: Scale) -> None: ...

    def add(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Takes the losses of one forward pass."""
        return dict(losses)

    def carried(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All losses of the step, whose sum has the gradients of the step."""
        return dict(losses)


class Apart(Together):
    """Takes the gradients of each pass as soon as there is its loss: what it kept is free then.

    They lie beside the parameters until the whole step is known, so that whoever does the backward
    pass of the step (DDP, accumulation, clipping) finds one loss with one gradient, and a step that
    is left out has none.

    Args:
        network: Whose parameters are trained.
        scale: Of losses before their backward pass, see `scale_of`.
    """

    def __init__(self, network: nn.Module, scale: Scale) -> None:
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._scale = scale
        self._gradients: list[Tensor | None] = [None] * len(self._parameters)

    def add(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counted = [loss.mean() for key, loss in losses.items() if 'loss' in key]
        total = self._scale(torch.stack(counted).sum())
        with torch.autocast(total.device.type, enabled=False):
            found = torch.autograd.grad(total, self._parameters, allow_unused=True)
        for place, gradient in enumerate(found):
            before = self._gradients[place]
            if gradient is not None:
                # not in place: parameters that are added to each other share one
                self._gradients[place] = gradient if before is None else before + gradient
        return {key: loss.detach() for key, loss in losses.items()}

    def carried(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = next(key for key in losses if 'loss' in key)
        pairs = [
            (parameter, gradient)
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True)
            if gradient is not None
        ]
        parameters, gradients = zip(*pairs, strict=True)
        unit = self._scale(losses[first].new_ones(()))
        return {**losses, first: _Known.apply(losses[first], unit, gradients, *parameters)}


class _Known(torch.autograd.Function):
    """A number whose gradients are known: those of ``unit`` times it."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, unit: Tensor, gradients: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        ctx.unit, ctx.gradients = unit, gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, ()
        factor = outputs[0] / ctx.unit
        return None, None, None, *(gradient * factor for gradient in gradients)


PASSES = {'together': Together, 'apart': Apart}


def passes_of(name: str) -> type[Together]:
    """The backward passes by their name in ``model.passes``; an `OptionError` for another."""
    if name not in PASSES:
        raise OptionError(f'model.passes={name!r}: expected one of {tuple(PASSES)}')
    return PASSES[name]
