"""What each operator does to channel ids, and what it costs.

One handler per operator of the exported graph (the extension point of the paper's Appendix A5). A
handler is called as ``handler(walk, node, *args, **kwargs)`` with the node's arguments, every
tensor among them replaced by its `Value`, and returns the output's `Value` (or a tuple of them). It
ties ids through ``walk.ids`` and reports its cost through ``walk.cost``. An operator without a
handler makes the channels that reach it stay, and is named in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ids import Value

Handler = Callable[..., Any]


HANDLERS: dict[str, Handler] = {}


def register_handler(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler for operators by their ATen names without overload: ``'conv2d'``.

    An in-place variant (``'relu_'``) is handled as its functional one.
    """

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def _dims(x: Value, dims: int | Sequence[int] | None) -> list[int]:
    """Dimensions as an operator is given them; all, where it is given none."""
    if dims is None or (not isinstance(dims, int) and not dims):
        return list(range(len(x.shape)))
    return [dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims)]


# --- shared by several --------------------------------------------------------------------------


def _lines(walk: Any, value: Value, dim: int) -> list[Any]:
    """The ids along one dimension as a list that is empty where there are none."""
    line = walk.line(value, dim)
    return [] if line is None else [line]
