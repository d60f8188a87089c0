"""Checkpoints that must fit: an error instead of MMEngine's warning and random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class CheckpointError(RuntimeError):
    """Weights that do not fit the network they are loaded into."""


def require_fit(module: nn.Module, hint: str = '') -> None:
    """Makes every way of loading weights into ``module`` fail unless they fit exactly.

    It holds for `torch.nn.Module.load_state_dict` and for MMEngine's loaders, strict or not, also
    where the module is part of a larger one.

    Args:
        module: The network.
        hint: What to say about it in the message.
    """

    def check(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        found = differences(module, given)
        if found:
            shown = '\n  '.join(found[:5])
            more = f'\n  … and {len(found) - 5} more' if len(found) > 5 else ''
            raise CheckpointError(
                f'the weights do not fit this {type(module).__name__}'
                f'{f" ({prefix[:-1]})" if prefix else ""}:\n  {shown}{more}\n{hint}'.rstrip()
            )

    module._register_load_state_dict_pre_hook(check, with_module=True)  # as OpenMMLab does


def differences(module: nn.Module, given: Mapping[str, Any]) -> list[str]:
    """What keeps a state dict from fitting a module, one line each, in the module's order."""
    own: dict[str, Tensor] = dict(module.state_dict())
    found = []
    for key, tensor in own.items():
        if key not in given:
            if not key.endswith('num_batches_tracked'):  # absent from old checkpoints
                found.append(f'{key}: missing in the checkpoint, {tuple(tensor.shape)} here')
        elif tuple(given[key].shape) != tuple(tensor.shape):
            found.append(
                f'{key}: {tuple(given[key].shape)} in the checkpoint, {tuple(tensor.shape)} here'
            )
    found += [
        f'{key}: {tuple(getattr(value, "shape", ()))} in the checkpoint, not here'
        for key, value in given.items()
        if key not in own
    ]
    return found
