"""Checkpoints that must fit: an error instead of MMEngine's warning and random weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from .errors import CheckpointError
from .foreign import before_loading


def require_fit(
    module: nn.Module,
    hint: str = '',
    describe: Callable[[Mapping[str, Any]], str] | None = None,
    optional: Collection[str] = (),
) -> None:
    """Makes every way of loading weights into ``module`` fail unless they fit exactly.

    It holds for `torch.nn.Module.load_state_dict` and for MMEngine's loaders, strict or not, also
    where the module is part of a larger one.

    Args:
        module: The network.
        hint: What to say about it in the message.
        describe: Says what network a state dict is of; the message has it for both sides.
        optional: Keys that may be missing, or be there though the network has no such tensor.
    """

    before: set[str] = set()

    def note(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        before.clear()
        before.update(key.removeprefix(prefix) for key in state_dict if key.startswith(prefix))

    def check(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        # the network's own hooks may fit a table to another size, or take one away to work it out
        found = differences(module, given, {*optional, *(before - given.keys())})
        if not found:
            return
        lines = [
            f'the weights do not fit this {_name(module)}{f" ({prefix[:-1]})" if prefix else ""}:',
            *(f'  {line}' for line in found[:5]),
            *([f'  … and {len(found) - 5} more'] if len(found) > 5 else []),
        ]
        if describe is not None:
            own = describe(module.state_dict())
            lines.append(f'This network is {own}, the weights are {describe(given)}.')
        if start := _prefix_of(module, given, optional):
            lines.append(f'Their keys begin with {start!r}: load them with prefix={start!r}.')
        raise CheckpointError('\n'.join([*lines, hint]).rstrip())

    before_loading(module, note, first=True)
    before_loading(module, check)


def _prefix_of(module: nn.Module, given: Mapping[str, Any], optional: Collection[str]) -> str:
    """What stands before the keys of weights that would fit without it; '' for nothing."""
    own = next(iter(module.state_dict()), '')
    for key in given:
        start = key.removesuffix(own)
        if start and start != key and start.endswith('.'):
            inner = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
            if not differences(module, inner, optional):
                return start
    return ''


def _name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix('Dynamic')


def differences(
    module: nn.Module, given: Mapping[str, Any], optional: Collection[str] = ()
) -> list[str]:
    """What keeps a state dict from fitting a module, one line each, in the module's order."""
    own: dict[str, Tensor] = dict(module.state_dict())
    found = []
    for key, tensor in own.items():
        if key not in given:
            # counters are absent from old checkpoints
            if key not in optional and not key.endswith('num_batches_tracked'):
                found.append(f'{key}: missing in the checkpoint, {tuple(tensor.shape)} here')
        elif tuple(given[key].shape) != tuple(tensor.shape):
            found.append(
                f'{key}: {tuple(given[key].shape)} in the checkpoint, {tuple(tensor.shape)} here'
            )
    found += [
        f'{key}: {tuple(getattr(value, "shape", ()))} in the checkpoint, not here'
        for key, value in given.items()
        if key not in own and key not in optional
    ]
    return found
