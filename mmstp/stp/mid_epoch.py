"""What a checkpoint needs beside MMEngine's content where it is not written at an epoch's end."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.dist import all_reduce_params, get_world_size
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..subnets.norm_statistics import norms_with_statistics


def agree(runner: Runner, network: nn.Module) -> None:
    """Averages over the ranks what each has of its own, before one of them writes a checkpoint.

    That are running statistics, which MMEngine averages at the end of an epoch, and gradients that
    are accumulated for a step to come. Both are linear in what comes later, so their averages then
    are the same.
    """
    if get_world_size() == 1:
        return
    statistics = [
        buffer
        for _, norm in norms_with_statistics(network)
        for buffer in norm.buffers()
        if buffer.is_floating_point()
    ]
    all_reduce_params([*statistics, *summed_gradients(runner, network).values()], op='mean')


def summed_gradients(runner: Runner, network: nn.Module) -> dict[str, Tensor]:
    """The gradients that are accumulated for a step to come, by parameter."""
    if not isinstance(runner.optim_wrapper, OptimWrapper) or runner.optim_wrapper.should_update():
        return {}
    named = network.named_parameters()
    return {key: parameter.grad for key, parameter in named if parameter.grad is not None}


def go_on_summing(runner: Runner, network: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Takes over what `summed_gradients` gave, unless a step was just made."""
    if runner.optim_wrapper.should_update():
        return
    for key, parameter in network.named_parameters():
        if key in gradients:
            parameter.grad = gradients[key].to(parameter.device, parameter.dtype, copy=True)
