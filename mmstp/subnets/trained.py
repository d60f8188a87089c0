"""Whether an active subnet and its export train alike: a step of each, outputs and gradients.

A network may change its own state in train mode, or work something out again in the backward pass,
when no subnet is active any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..analysis.scratch import (
    clones,
    copied,
    in_precision,
    random_state_kept,
    set_precision,
    surrounded,
)
from .apart import TOLERANCE, Apart, compared
from .cut import cut_out
from .masked import tensors_of
from .modules import subnet_of
from .plan import DENSE, SubnetPlan

IN_TRAINING = 'in train mode: '


def trained_difference(
    model: nn.Module, plan: SubnetPlan, inputs: tuple[Any, ...], others: tuple[Any, ...] | None
) -> str | None:
    """How an active subnet and its export differ in a step of training; chance is the same in both.

    Args:
        model: A dynamic model that nothing ran in train mode; only its precision changes.
        plan: The subnet's.
        inputs: Its arguments.
        others: Further ones, of which a batch gets one; None where it takes no other batch.

    Returns:
        None where they agree, or where the dense network does not train on such a batch.
    """
    found = None
    for dtype, tolerance in TOLERANCE.items():
        set_precision(model, dtype)
        batch = in_precision(dtype, inputs)
        if others is not None:
            batch = surrounded(batch, in_precision(dtype, others), twice=False)
        found = _difference(model, plan, batch, tolerance)
        if found is None or not found.rounding:
            break
    if found is None:
        return None
    dense, again = (_train(copied(model), batch, DENSE) for _ in range(2))
    if isinstance(dense, Apart) or isinstance(again, Apart):
        return None
    return None if _unlike(dense, again, tolerance) else IN_TRAINING + found.reason


def _difference(
    model: nn.Module, plan: SubnetPlan, inputs: tuple[Any, ...], tolerance: float
) -> Apart | None:
    network = copied(model)
    before = {key: parameter.detach().clone() for key, parameter in _parameters(network)}
    active = _train(network, inputs, plan)
    for key, parameter in _parameters(network):
        if key in plan.tensors and not torch.equal(parameter, before[key]):
            return Apart(f'its forward changes {key!r}, a part of the main network')
    static = _train(cut_out(model, plan), inputs)
    if isinstance(active, Apart) or isinstance(static, Apart):
        return active if isinstance(active, Apart) else static
    return _unlike(active, static, tolerance)


@dataclass(frozen=True)
class _Trained:
    """What a network gives in train mode: outputs, and gradients by state-dict key."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]


def _train(network: nn.Module, inputs: tuple[Any, ...], plan: SubnetPlan | None = None) -> Any:
    """`_Trained`, or an `Apart` where the code raises.

    The backward pass comes when the subnet is no longer active, as it may in a training.

    Args:
        network: A copy that may change.
        inputs: Its arguments.
        plan: The subnet's, for a dynamic network.
    """
    subnet, doing = subnet_of(network), 'forward'
    try:
        with random_state_kept(seed=0), eval_mode(network, set(network.modules())):
            subnet.plan = plan or subnet.plan
            outputs = tensors_of(network(*clones(inputs)))
            if plan is not None:
                subnet.plan = None
            doing = 'backward'
            trained = {key: p for key, p in _parameters(network) if p.requires_grad}
            weighted = [
                (o * torch.linspace(0.5, 1.5, o.numel()).to(o).reshape(o.shape)).sum()
                for o in outputs
                if o.is_floating_point() and o.requires_grad
            ]
            if weighted:
                # not `torch.autograd.grad`, with which some checkpoints refuse to work
                torch.stack(weighted).sum().backward()
    except Exception as error:
        return Apart(f'its {doing} fails: {type(error).__name__}: {error}', raises=True)
    gradients = {
        key: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for key, parameter in trained.items()
    }
    if plan is not None:
        gradients = {key: plan.narrow(key, gradient) for key, gradient in gradients.items()}
    return _Trained([output.detach() for output in outputs], gradients)


def _unlike(one: _Trained, other: _Trained, tolerance: float) -> Apart | None:
    """How two networks differ in train mode, for what both have.

    Gradients are held against the largest of all: some are zero but for rounding.
    """
    if found := compared(one.outputs, other.outputs, tolerance):
        return found
    keys = [
        key
        for key in sorted(one.gradients.keys() & other.gradients.keys())
        if other.gradients[key].numel()
    ]
    scale = max((float(other.gradients[key].abs().max()) for key in keys), default=0.0)
    for key in keys:
        gap = float((one.gradients[key] - other.gradients[key]).abs().max())
        if not gap <= tolerance * scale:
            return Apart(
                f'the gradient of {key!r} differs by {gap:.1e} where gradients reach {scale:.1e}: '
                'something is worked out again when no subnet is active any more, as by '
                'torch.utils.checkpoint',
                rounding=True,
            )
    return None


def _parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return network.named_parameters(remove_duplicate=False)
