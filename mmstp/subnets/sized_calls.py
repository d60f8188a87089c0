"""Sizes that a module's Python code gives to operators, supplied from the analysis.

A forward may hold the number of its heads, or work out a head's width from the width of its input.
In a subnet such numbers are wrong. The trace knows for every such call, in order, which of the
sizes count channels; while the module's own forward runs, a `TorchFunctionMode` puts those in
place. Other sizes (batch, space) remain what the code says. With 2 of 4 heads of width 8::

    qkv.reshape(b, n, 3, self.num_heads, c // self.num_heads)
    the code says       (b, n, 3, 4, 8)     which 3 × 2 × 8 channels do not fill
    the trace says      (1, 49, 3, 4, 8)    of which the fourth counts heads
    the plan says       (·, ·, ·, 2, ·)
    the operator gets   (b, n, 3, 2, 8)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..analysis.known_shapes import SHAPES
from ..analysis.operators.table import OPERATORS
from ..analysis.records import SizedCall
from ..errors import CallError
from ..foreign import function_modes, schema_name
from .einops_sizes import let_einops_pass

# sequences of calls, one of which a forward makes
Ways = Sequence[Sequence[SizedCall[int]]]


class SuppliedSizes(TorchFunctionMode):
    """While it is entered, calls get the sizes of a subnet.

    Args:
        path: The module whose forward runs, for messages.
        ways: Sequences of calls, one of which the module (with all inside it) makes.

    Attributes:
        paused: Calls made now are none of those (see `unsupplied`).
        changed: Whether a size that the code gave was another.

    Raises:
        CallError: If the module makes other calls than those.
    """

    def __init__(self, path: str, ways: Ways) -> None:
        super().__init__()
        self._path, self._ways, self._made = path, ways, 0
        self._constants = any(call.supplies == 'constant' for way in ways for call in way)
        self.paused = False
        self.changed = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if SHAPES.gives_one(func, args, kwargs):  # which is no call of the trace
            return SHAPES.seen(func(*args, **kwargs))
        # functions of the Python interface are named as ATen's operators; others have a schema
        called = schema_name(func) or f'aten::{getattr(func, "__name__", "")}'
        operator = OPERATORS.get(called)
        name = None if operator is None else operator.supplies
        if name is None or self.paused or any(isinstance(arg, torch.dtype) for arg in args):
            return func(*args, **kwargs)
        if name == 'constant' and not self._constants:
            return func(*args, **kwargs)
        given = _Given.of(name, args, kwargs)
        call = self._following(name, given)
        if not call.counts and not call.runs:
            return func(*args, **kwargs)
        sizes = SUPPLY[name](call, given, self._path)
        self.changed |= tuple(sizes) != tuple(given.sizes)
        return func(*given.tensors, *given.with_sizes(sizes), **given.others)

    def _following(self, name: str, given: _Given) -> SizedCall[int]:
        """The call that is made now, on the ways that are still open."""
        going_on = [way for way in self._ways if len(way) > self._made]
        ways = [way for way in going_on if way[self._made].supplies == name]
        if len(ways) > 1:  # they part where one takes sizes of another number of dimensions
            ways = [way for way in ways if _fits(way[self._made], given)] or ways
        if not ways:
            raise CallError(
                f'{self._path or "the model"} calls {name!r} where its trace does not: its '
                'forward depends on the mode, on values or on the size of its input'
            )
        call = ways[0][self._made]
        if any(not way[self._made].alike(call) for way in ways[1:]):
            raise CallError(
                f'{self._path or "the model"} calls {name!r} with {tuple(given.sizes)}, where '
                'the ways that were traced differ in which of these count channels'
            )
        self._ways = tuple(ways)
        self._made += 1
        return call

    def __enter__(self) -> Any:
        let_einops_pass(_supplying)
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        if exc_type is None and all(len(way) > self._made for way in self._ways):
            raise CallError(
                f'{self._path or "the model"} ends before it calls '
                f'{self._ways[0][self._made].supplies!r}, which its trace does'
            )


def _supplying() -> bool:
    return any(isinstance(m, SuppliedSizes) and not m.paused for m in function_modes())


@contextmanager
def unsupplied() -> Iterator[None]:
    """Inside, calls keep their sizes: a forward that is not the traced one runs."""
    modes = [m for m in function_modes() if isinstance(m, SuppliedSizes)]
    before = [mode.paused for mode in modes]
    for mode in modes:
        mode.paused = True
    try:
        yield
    finally:
        for mode, paused in zip(modes, before, strict=True):
            mode.paused = paused


@dataclass(frozen=True)
class _Given:
    """A call's arguments: the tensor (``torch.zeros`` has none), the sizes, and what is around."""

    tensors: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    before: tuple[Any, ...]
    after: tuple[Any, ...]
    others: dict[str, Any]
    as_one: bool  # the sizes are one argument, a sequence
    single: bool  # a split into parts of one size

    @classmethod
    def of(cls, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Given:
        others = dict(kwargs)
        rest = list(args)
        tensors: tuple[Tensor, ...] = ()
        if rest and isinstance(rest[0], Tensor):
            tensors = (rest.pop(0),)
        elif 'input' in others:
            tensors = (others.pop('input'),)
        before: tuple[Any, ...] = ()
        if name == 'unflatten':
            before = (rest.pop(0) if rest else others.pop('dim'),)
        if not rest:  # given by keyword, under one of these names
            known = ('shape', 'size', 'sizes', 'split_size', 'split_size_or_sections',
                     'split_sizes', 'normalized_shape', 'repeats')  # fmt: skip
            rest = [others.pop(next(key for key in known if key in others))]
        first = rest[0]
        if isinstance(first, (tuple, list)):
            return cls(tensors, tuple(first), before, tuple(rest[1:]), others, True, False)
        if name in ('split', 'layer_norm'):
            return cls(tensors, (first,), before, tuple(rest[1:]), others, False, True)
        return cls(tensors, tuple(rest), before, (), others, False, False)

    def with_sizes(self, sizes: Sequence[int]) -> tuple[Any, ...]:
        as_one = self.as_one or len(sizes) != len(self.sizes)
        given: tuple[Any, ...] = (list(sizes),) if as_one else tuple(sizes)
        return (*self.before, *given, *self.after)


def _fits(call: SizedCall[int], given: _Given) -> bool:
    """Whether a call with these arguments can be this one."""
    if not call.dims or call.supplies == 'split':
        return True
    rank = len(given.sizes)
    if call.supplies == 'unflatten':
        rank += given.tensors[0].dim() - 1
    return rank == len(call.dims)


def _reshape(call: SizedCall[int], given: _Given, path: str) -> list[int]:
    return _reshaped(call, given.tensors[0].shape, list(given.sizes), path)


def _unflatten(call: SizedCall[int], given: _Given, path: str) -> list[int]:
    shape, (dim,) = given.tensors[0].shape, given.before
    assert isinstance(dim, int)
    dim %= len(shape)
    sizes = [*shape[:dim], *given.sizes, *shape[dim + 1 :]]
    return _reshaped(call, shape, sizes, path)[dim : dim + len(given.sizes)]


def _reshaped(call: SizedCall[int], shape: Sequence[int], sizes: list[int], path: str) -> list[int]:
    given = list(sizes)
    if len(given) != len(call.sizes):
        raise CallError(
            f'{path or "the model"} reshapes {tuple(shape)} to {tuple(given)}, where its trace has '
            f'{call.sizes}'
        )
    for before, after in call.runs:
        counted = {d: size for d in after if (size := call.dims[d]) is not None}
        for d, size in counted.items():
            sizes[d] = given[d] if given[d] == -1 else size
        if any(sizes[d] == -1 for d in after):
            continue
        total, product = math.prod(shape[d] for d in before), math.prod(sizes[d] for d in after)
        if total == product:
            continue
        # a batch that is folded into a dimension of channels (B * heads), of another size here
        into = [
            d for d in counted if given[d] * product in (total * call.sizes[d], total * counted[d])
        ]
        # channels that stay, where the code takes their number from others that do not
        other = [
            d for d in after if d not in counted and total * sizes[d] == product * call.sizes[d]
        ]
        if other:
            sizes[other[0]] = call.sizes[other[0]]
            continue
        divided = [d for d in after if d not in counted and sizes[d] * total % product == 0]
        as_traced = all(given[d] == call.sizes[d] for d in counted)
        if divided and (as_traced or not into):  # a batch that the code divided by the dense heads
            sizes[divided[0]] = sizes[divided[0]] * total // product
            continue
        if not into:
            raise CallError(
                f'{path or "the model"} reshapes {tuple(shape)} to {tuple(given)}, where its '
                f'trace has {call.sizes}: the subnet has {call.dims} there'
            )
        sizes[into[0]] = sizes[into[0]] * total // product
    count, filled = math.prod(sizes), math.prod(shape)
    if -1 not in sizes and count != filled:  # the same, of a batch that no channels are folded in
        for d, kept in enumerate(call.dims):
            if kept is None and sizes[d] * filled % count == 0:
                sizes[d] = sizes[d] * filled // count
                break
    return sizes


def _expand(call: SizedCall[int], given: _Given, path: str) -> list[int]:
    return [
        size if kept is None or size == -1 else kept
        for size, kept in zip(given.sizes, call.dims, strict=True)
    ]


def _split(call: SizedCall[int], given: _Given, path: str) -> list[int]:
    parts = [own if kept is None else kept for own, kept in zip(call.sizes, call.dims, strict=True)]
    equal = given.single and len(set(parts)) == 1
    return parts[:1] if equal else parts


def _layer_norm(call: SizedCall[int], given: _Given, path: str) -> list[int]:
    return list(given.tensors[0].shape[-len(given.sizes) :])


SUPPLY: dict[str, Callable[[SizedCall[int], _Given, str], list[int]]] = {
    'reshape': _reshape,
    'unflatten': _unflatten,
    'expand': _expand,
    'repeat': _expand,
    'split': _split,
    'layer_norm': _layer_norm,
    'constant': _expand,
}
