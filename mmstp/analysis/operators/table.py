"""The table of operators: all that mmstp knows about one stands in one record.

The extension point of the paper's Appendix A5. A record's *handler* is called as
``handler(walk, node, *args, **kwargs)`` with the node's arguments, every tensor among them replaced
by its `Value`, and returns the output's `Value` (or a tuple of them). It ties ids through
``walk.ids`` and reports its cost through ``walk.cost``. Channels that reach an operator which is
not in the table stay, and the report names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, fx

from ...errors import OperatorError
from ..ids import ChannelIds, Ids, Value

Sizes = Sequence[tuple[Value, int]]  # each that of a dimension of a value
Runs = Sequence[
    tuple[Sequence[int], Sequence[int]]
]  # dimensions before and after, of equal product
Arguments = tuple[list[Any], dict[str, Any]]
Kept = Mapping[int, Tensor]  # positions by dimension
Handler = Callable[..., Any]
# of the arguments, of what is kept of the first one, and of its rank
Narrowed = Callable[[list[Any], dict[str, Any], Kept, int], Arguments]


class Walker(Protocol):
    """What handlers see of a `mmstp.analysis.walk.Walk`; its methods say what they do there."""

    ids: ChannelIds

    def lines(self, value: Value, dim: int) -> list[Ids]: ...
    def produced(
        self, node: fx.Node, weight: Value, dim: int = 0, channels: int = 1, ids: Ids | None = None
    ) -> None: ...
    def are_layer(self, values: Sequence[Value]) -> bool: ...
    def stays(self, node: fx.Node, values: Sequence[Value], reason: str) -> Any: ...
    def cost(self, node: fx.Node, kind: str, dims: Sizes, factor: int = 1) -> None: ...
    def elementwise_cost(self, node: fx.Node, kind: str, value: Value) -> None: ...
    def sizes(self, node: fx.Node, sizes: Sizes, runs: Runs = ()) -> None: ...
    def over_channels(self, node: fx.Node, x: Value, dims: Sequence[int]) -> Value: ...
    def sliced(self, node: fx.Node, dim: int, start: int, stop: int, step: int) -> None: ...


@dataclass(frozen=True)
class Operator:
    """What is known of an operator.

    Attributes:
        name: Its qualified name, without overload and the mark of in-place variants:
            ``'aten::relu'``.
        handler: What it does to channel ids, and what it costs.
        passes: Whether it hands every element on in its place, added to or activated. A path of
            such operators alone makes a block one that may be skipped.
        supplies: Where Python gives it sizes of channels, how: one of `SUPPLIES`.
        narrowed: Of an operator over channels with parameters or sizes of its own: makes them fit
            a first argument of which only some positions are kept. For the check of a supernet.
    """

    name: str
    handler: Handler
    passes: bool = False
    supplies: str | None = None
    narrowed: Narrowed | None = None


OPERATORS: dict[str, Operator] = {}
# how sizes can be supplied; `mmstp.subnets.sized_calls.SUPPLY` has a function for each
SUPPLIES = ('reshape', 'unflatten', 'expand', 'repeat', 'split', 'layer_norm', 'constant')


def register_handler(
    *names: str, passes: bool = False, supplies: str | None = None, narrowed: Narrowed | None = None
) -> Callable[[Handler], Handler]:
    """Registers a handler for operators, and what else is known of them; see `Operator`.

    Args:
        *names: Qualified names: ``'example::soft_threshold'``. Without a namespace ATen's is meant:
            ``'conv2d'``.
        passes: See `Operator`.
        supplies: See `Operator`.
        narrowed: See `Operator`.

    Raises:
        OperatorError: If one of the operators is in the table already, a name has an overload, or
            ``supplies`` is none of `SUPPLIES`.
    """
    if supplies is not None and supplies not in SUPPLIES:
        raise OperatorError(f'supplies={supplies!r}: expected one of {", ".join(SUPPLIES)}')
    found = [name if '::' in name else f'aten::{name}' for name in names]

    def register(handler: Handler) -> Handler:
        for name, qualified in zip(names, found, strict=True):
            namespace, _, own = qualified.partition('::')
            if '.' in own or (own.endswith('_') and not own.startswith('__')):
                raise OperatorError(
                    f'operator {name!r}: expected the name without overload and without the mark '
                    f'of in-place variants: {namespace}::{own.partition(".")[0].rstrip("_")}'
                )
            if qualified in OPERATORS:
                raise OperatorError(
                    f'operator {qualified!r} is registered already, with '
                    f'{OPERATORS[qualified].handler.__qualname__}; '
                    'take it out of mmstp.analysis.operators.table.OPERATORS first'
                )
        for qualified in found:
            OPERATORS[qualified] = Operator(qualified, handler, passes, supplies, narrowed)
        return handler

    return register


def for_every_output(node: fx.Node, value: Value) -> Any:
    """The value of an operator's output, or of each where it has several."""
    outputs = node.meta['val']
    return (value,) * len(outputs) if isinstance(outputs, (tuple, list)) else value
