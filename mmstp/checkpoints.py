"""Checkpoints that must fit: an error instead of MMEngine's warning and random weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
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
    where the module is part of a larger one. ``describe`` says what network a state dict is of, and
    ``optional`` keys may be missing, or be there though the network has no such tensor.
    """
    fit = _Fit(hint, describe, frozenset(optional))
    before_loading(module, fit.note, first=True)
    before_loading(module, fit.check)


@dataclass
class _Fit:
    """What `require_fit` is given; an object, so that a module with its hooks pickles."""

    hint: str
    describe: Callable[[Mapping[str, Any]], str] | None
    optional: frozenset[str]
    before: frozenset[str] = frozenset()  # the keys that came, ahead of the network's own hooks

    def note(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Runs before the network's own hooks."""
        keys = (key for key in state_dict if key.startswith(prefix))
        self.before = frozenset(key.removeprefix(prefix) for key in keys)

    def check(self, module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Runs behind them."""
        given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        # the network's own hooks may fit a table to another size, or take one away to work it out
        found = differences(module, given, {*self.optional, *(self.before - given.keys())})
        if not found:
            return
        where = f' ({prefix[:-1]})' if prefix else ''
        lines = [f'the weights do not fit this {type(module).__name__}{where}:']
        lines += [f'  {line}' for line in found[:5]]
        if len(found) > 5:
            lines.append(f'  … and {len(found) - 5} more')
        if self.describe is not None:
            own = self.describe(module.state_dict())
            lines.append(f'This network is {own}, the weights are {self.describe(given)}.')
        if start := _prefix_of(module, given, self.optional):
            lines.append(f'Their keys begin with {start!r}: load them with prefix={start!r}.')
        raise CheckpointError('\n'.join([*lines, self.hint]).rstrip())


def _prefix_of(
    module: nn.Module, given: Mapping[str, Any], optional: Collection[str]
) -> str | None:
    """What stands before the keys of weights that would fit without it."""
    own = next(iter(module.state_dict()), '')
    for key in given:
        start = key.removesuffix(own)
        if start and start != key and start.endswith('.'):
            inner = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
            if not differences(module, inner, optional):
                return start
    return None


def differences(
    module: nn.Module, given: Mapping[str, Any], optional: Collection[str] = ()
) -> list[str]:
    """What keeps a state dict from fitting a module, one line each, in the module's order."""
    own: dict[str, Tensor] = dict(module.state_dict())
    found = []
    for key, tensor in own.items():
        shape = tuple(tensor.shape)
        if key not in given:
            # counters are absent from old checkpoints
            if key not in optional and not key.endswith('num_batches_tracked'):
                found.append(f'{key}: missing in the checkpoint, {shape} here')
        elif tuple(given[key].shape) != shape:
            found.append(f'{key}: {tuple(given[key].shape)} in the checkpoint, {shape} here')
    found += [
        f'{key}: {tuple(getattr(value, "shape", ()))} in the checkpoint, not here'
        for key, value in given.items()
        if key not in own and key not in optional
    ]
    return found
