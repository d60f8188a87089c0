"""Cutting a subnet out of its dense network: a plain static network with smaller tensors.

A compact network is described by its dense network's config and a `CompactPlan`: the shapes of the
tensors that are smaller, the numbers that layers hold about them and the blocks that are gone. So
it can be rebuilt without tracing anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..analysis.eval_state import eval_mode, renew
from ..errors import CompactPlanError
from .attention import forward_of
from .compact_spec import CompactPlan
from .static import Skipped, replace_forward, supply_sizes


def compact(
    model: nn.Module, plan: CompactPlan, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Makes a static dense network compact, in place.

    Args:
        model: The dense network.
        plan: What is smaller.
        tensors: The smaller tensors, by key; without them, each starts as the first part of the
            dense one (an initialisation of the right shape).

    Raises:
        CompactPlanError: If the plan names a module or tensor that the model does not have, or a
            shape that is not within the dense one.
    """
    for path in plan.skipped:
        parent = _module(model, path.rpartition('.')[0], path)
        setattr(parent, path.rpartition('.')[2], Skipped(_module(model, path, path)))
    narrow: dict[Tensor, Tensor] = {}  # what the dense network shares stays shared
    for key, shape in plan.shapes.items():
        if any(key.startswith(path + '.') for path in plan.skipped):
            continue
        path, _, name = key.rpartition('.')
        module = _module(model, path, key)
        store: dict[str, Any] = (
            module._parameters if name in module._parameters else module._buffers
        )
        if store.get(name) is None:
            raise CompactPlanError(f'{type(model).__name__} has no tensor {key!r}')
        dense = store[name]
        if len(shape) != dense.dim() or any(a > b for a, b in zip(shape, dense.shape, strict=True)):
            raise CompactPlanError(
                f'{key}: shape {shape} is not within the dense {tuple(dense.shape)}'
            )
        if dense not in narrow:
            if tensors is not None:
                data = tensors[key]
            else:
                data = dense.detach()[tuple(slice(size) for size in shape)].clone()
            if isinstance(dense, nn.Parameter):
                data = nn.Parameter(data, requires_grad=dense.requires_grad)
            narrow[dense] = data
        store[name] = narrow[dense]
    for path, sizes in plan.sizes.items():
        if any(path == p or path.startswith(p + '.') for p in plan.skipped):
            continue
        module = _module(model, path, f'{path}.{next(iter(sizes))}')
        for name, size in sizes.items():
            setattr(module, name, size)
    for path, module in model.named_modules():
        if (forward := forward_of(module)) is not None:
            replace_forward(module, forward if path in plan.sizes else type(module).forward)
    for path, ways in plan.calls.items():
        supply_sizes(_module(model, path, path), path, ways)
    renew(model)


def _module(model: nn.Module, path: str, wanted: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CompactPlanError(f'{type(model).__name__} has no {wanted!r}: {error}') from error


def count_parameters(model: nn.Module) -> int:
    """Parameters of a network, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-adds of one forward, by `torch.utils.flop_counter`: a second, independent count."""
    from torch.utils.flop_counter import FlopCounterMode

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know its operator, ...
    try:
        for parameter in trained:  # nor what a parameter that is an input would be traced for
            parameter.requires_grad = False
        # ... nor that of the fused attention on the CPU
        counter = FlopCounterMode(display=False)
        with eval_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trained:
            parameter.requires_grad = True
    return int(counter.get_total_flops()) // 2
