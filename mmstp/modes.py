"""Train and eval mode, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, and each in its own mode again afterwards.

    The flags are set directly: ``train()`` and ``eval()`` are overridden by OpenMMLab's backbones,
    and ``train()`` would put modules that were kept in eval mode into train mode.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training
