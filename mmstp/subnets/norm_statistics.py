"""Estimating the statistics of batch normalisation anew.

Weights are shared between the main network and its subnets, running statistics cannot be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..analysis.eval_state import eval_mode
from ..foreign import BatchNorm


def norms_with_statistics(network: nn.Module) -> list[tuple[str, BatchNorm]]:
    """The layers that normalise by running statistics in eval mode, with their paths."""
    return [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, BatchNorm) and module.track_running_stats
    ]


def _called(network: nn.Module, batch: Any) -> Any:
    """The network's output for a batch, as `Supernet` takes its inputs."""
    if isinstance(batch, Mapping):
        return network(**batch)
    return network(*batch) if isinstance(batch, tuple) else network(batch)


@torch.no_grad()
def calibrate(
    network: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> int:
    """Replaces running statistics by those over ``batches``.

    They are reset and averaged cumulatively (``momentum=None``) with the norm layers alone in train
    mode; modes and momenta are restored afterwards.

    Args:
        network: A compact network.
        batches: Tensors, tuples of positional arguments, dicts of arguments by name; or what
            ``forward`` takes.
        forward: Runs the network on a batch; by default the network is called with it.

    Returns:
        How many norm layers were calibrated.

    Raises:
        ValueError: If there are norm layers and not a single batch.
    """
    norms = [norm for _, norm in norms_with_statistics(network)]
    if not norms:
        return 0
    run = forward or functools.partial(_called, network)
    momenta = [norm.momentum for norm in norms]
    try:
        with eval_mode(network):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.training = True
            count = 0
            for batch in batches:
                run(batch)
                count += 1
        if not count:
            raise ValueError('no batch to estimate the statistics of the norm layers from')
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(norms)
