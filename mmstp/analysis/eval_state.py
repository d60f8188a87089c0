"""Train and eval mode, module by module."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module, live: Collection[nn.Module] = ()) -> Iterator[None]:
    """Every module in eval mode inside, and each in its own mode again afterwards.

    Modules that override ``train()`` (to keep something in eval mode that they work out anew in
    train mode) have theirs called. It may change the modes of others, as OpenMMLab's backbones do;
    those are set back.

    Args:
        model: Any module.
        live: Modules that stay in train mode, without what is inside them.
    """
    modes = {module: module.training for module in model.modules()}
    own = overriding(model)
    try:
        for module in own:
            module.train(module in live)
        for module in modes:
            module.training = module in live
        yield
    finally:
        for module in own:
            module.train(modes[module])
        for module, training in modes.items():
            module.training = training


def renew(model: nn.Module) -> None:
    """Has modules drop what they keep in eval mode, and work it out anew from what they hold now.

    The modes stay as they are.
    """
    modes = {module: module.training for module in model.modules()}
    for module in overriding(model):
        module.train(True)
        module.train(modes[module])
    for module, training in modes.items():
        module.training = training


def overriding(model: nn.Module) -> list[nn.Module]:
    """The modules that have a ``train()`` of their own."""
    return [module for module in model.modules() if type(module).train is not nn.Module.train]


def caching(model: nn.Module) -> set[nn.Module]:
    """The modules that keep something in eval mode that they do not have in train mode.

    Biases looked up from a table of a parameter, for example. It is worked out by the dense
    module, and is wrong for its subnets.
    """
    found = set()
    with eval_mode(model):
        for module in overriding(model):
            module.train(True)
            live = set(vars(module))
            module.train(False)
            if set(vars(module)) != live:
                found.add(module)
    return found
