"""Static modules of compact networks whose forward is not, or not only, their class's own."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from .attention import Forward, first_argument
from .sized_calls import SuppliedSizes, Ways, unsupplied


def supply_sizes(module: nn.Module, path: str, ways: Ways) -> None:
    """Makes a module's forward run with the sizes of a subnet, in place.

    Args:
        module: Any module whose tensors are those of the subnet.
        path: Its path, for messages.
        ways: The sequences of calls, one of which its forward makes.
    """
    vars(module)['_ways'] = ways
    vars(module)['_path'] = path
    base: Any = type(module)
    module.__class__ = _with_calls(base)


def replace_forward(module: nn.Module, forward: Forward) -> None:
    """Makes a module run another forward than its class's, in place.

    It is not the one that was traced: calls in it are none of those that are supplied with sizes.
    """
    base: Any = type(module)
    module.__class__ = _unsupplied(base, forward)


class Skipped(nn.Identity):
    """Stands where a block was left out: hands on the first of what it is called with.

    It keeps the block's numbers and names, which the code around it may read, but is no instance of
    its class, whose layers others would look for.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, value in vars(block).items():
            if not name.startswith('_') and isinstance(value, (bool, int, float, str, tuple)):
                vars(self)[name] = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return first_argument(args, kwargs)


@functools.cache
def _with_calls(base: Any) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with SuppliedSizes(self._path, self._ways):
            return base.forward(self, *args, **kwargs)

    return _with_forward(base, forward)


@functools.cache
def _unsupplied(base: Any, own: Forward) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with unsupplied():
            return own(self, *args, **kwargs)

    return _with_forward(base, forward)


@functools.cache
def _with_forward(base: Any, forward: Forward) -> type[nn.Module]:
    members = {
        'forward': forward,
        '__module__': __name__,
        '__doc__': f'{base.__name__} as a part of a subnet.',
    }
    return type(f'Compact{base.__name__}', (base,), members)
