"""Train and eval mode, module by module, and the modules that remember something in eval mode."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .scratch import clones


@contextmanager
def eval_mode(model: nn.Module, live: Collection[nn.Module] = ()) -> Iterator[None]:
    """Every module in eval mode inside, and each in its own mode again afterwards.

    Modules that override ``train()`` (to keep something in eval mode that they work out anew in
    train mode) have theirs called. It may change the modes of others, as OpenMMLab's backbones do;
    those are set back. Modules in ``live`` stay in train mode, without what is inside them.
    """
    modes = _modes(model)
    try:
        _set_modes({module: module in live for module in modes})
        yield
    finally:
        _set_modes(modes)


def renew(model: nn.Module) -> None:
    """Has modules drop what they keep in eval mode, and work it out anew from what they hold now.

    The modes stay as they are.
    """
    modes = _modes(model)
    _set_modes(dict.fromkeys(modes, True))
    _set_modes(modes)


def _modes(model: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for module in model.modules()}


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Modules with a ``train()`` of their own first; it may change the modes of others."""
    for module, training in modes.items():
        if type(module).train is not nn.Module.train:
            module.train(training)
    for module, training in modes.items():
        module.training = training


def overriding(model: nn.Module) -> list[nn.Module]:
    """The modules that have a ``train()`` of their own."""
    return [module for module in model.modules() if type(module).train is not nn.Module.train]


def kept_in_eval(model: nn.Module) -> set[nn.Module]:
    """The modules that keep something in eval mode that they do not have in train mode.

    Biases looked up from a table of a parameter, for example. It is worked out by the dense
    module, and is wrong for its subnets.
    """
    found = set()
    with eval_mode(model):
        for module in overriding(model):
            module.train(True)
            in_train = set(vars(module))
            module.train(False)
            if set(vars(module)) != in_train:
                found.add(module)
    return found


def kept_by_forward(model: nn.Module, inputs: Sequence[Any]) -> set[nn.Module]:
    """The modules that keep tensors of a forward in eval mode for the next one.

    They keep them: the exporter hides what a forward keeps, and traces how it is worked out.
    """
    with eval_mode(model), torch.no_grad():
        before = [(module, _held(module)) for module in model.modules()]
        model(*clones(tuple(inputs)))
        return {module for module, held in before if _other_tensors(_held(module), held)}


def _held(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside parameters and modules, and which buffers."""
    return {
        name: dict(value) if type(value) is dict else value
        for name, value in vars(module).items()
        if name == '_buffers' or not name.startswith('_')
    }


def _other_tensors(now: Any, before: Any) -> bool:
    """Whether something now is, or holds, another tensor."""
    if type(now) is dict:
        known = before if type(before) is dict else {}
        return any(_other_tensors(value, known.get(key)) for key, value in now.items())
    return isinstance(now, Tensor) and now is not before
