"""What a block that is skipped returns: its output's structure, filled from its own arguments.

Of a block that is called as ``layer(x, (h, w))`` and returns ``(x + f(x), (h, w), None)``::

    {'tuple': [{'argument': ['x']}, {'argument': ['size']}, {'value': None}]}

Which argument is the stream, and which part of the output, is found by running the network once
beside its trace: the trace knows the node that the block's residual path starts from, and the one
it ends in, and the tensors that its forward gets and returns are told apart by their values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..foreign import pytree
from .eval_state import eval_mode
from .scratch import clones, copied, random_like, randomize
from .trace import Trace

HandsOn = Mapping[str, Any]
NO_ARGUMENT = 'what it adds to is none of the arguments of its forward'
NO_OUTPUT = 'the sum that it makes is no part of what its forward returns'
Place = tuple[Any, ...]  # the name of an argument, and keys into it


def hand_on(result: HandsOn, forward: inspect.Signature, args: Any, kwargs: Any) -> Any:
    """What a skipped block returns.

    Args:
        result: How it is made of the arguments.
        forward: The signature of the block's forward, without ``self``.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
    """
    # partial: who asks for the block's class may leave out what only the block needs
    bound = forward.bind_partial(*args, **kwargs)
    bound.apply_defaults()

    def made(part: HandsOn) -> Any:
        ((kind, content),) = part.items()
        if kind == 'argument':
            found: Any = bound.arguments
            for key in content:
                found = found[key]
            return found
        if kind == 'value':
            return content
        if kind == 'dict':
            return {key: made(inner) for key, inner in content.items()}
        return (tuple if kind == 'tuple' else list)(map(made, content))

    return made(result)


def is_result(value: Any) -> bool:
    """Whether a value, from a file for example, says what a block returns."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((kind, content),) = value.items()
    if kind == 'argument':
        keys = isinstance(content, (list, tuple)) and bool(content) and isinstance(content[0], str)
        return keys and all(type(key) in (str, int) for key in content)
    if kind == 'value':
        return content is None or isinstance(content, (bool, str))
    if kind == 'dict':
        return isinstance(content, Mapping) and all(map(is_result, content.values()))
    return (
        kind in ('tuple', 'list')
        and isinstance(content, (list, tuple))
        and all(map(is_result, content))
    )


def own_signature(forward: Callable[..., Any]) -> inspect.Signature:
    """That of a bound forward, without annotations and what its defaults are.

    Plain enough to be copied and pickled; arguments that are not given count as None.
    """
    parameters = inspect.signature(forward).parameters.values()
    empty = inspect.Parameter.empty
    return inspect.Signature(
        [
            p.replace(annotation=empty, default=p.default if p.default is empty else None)
            for p in parameters
        ]
    )


class Unknown(Exception):
    """Why it is not known what a block would return."""


def find_results(
    model: nn.Module, traced: Trace, blocks: Mapping[str, tuple[fx.Node, fx.Node]]
) -> dict[str, HandsOn | str]:
    """For blocks by path how what they return is made of their arguments, or why that is unknown.

    Args:
        model: The traced model.
        traced: Its trace.
        blocks: For each the node that its residual path starts from, and that it ends in.
    """
    if not blocks:
        return {}
    generator = torch.Generator().manual_seed(0)
    model, inputs = copied(model), random_like(traced.inputs, generator)
    randomize(model, generator, at_most=4096)  # the small ones, which may switch branches off
    modules = dict(model.named_modules())
    calls: dict[str, list[Any]] = {}  # path: arguments, output

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            calls[path] = [clones(dict(bound.arguments)), None]

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            calls[path][1] = clones(output)  # what comes next may change it in place

        return hook

    for path in blocks:
        modules[path].register_forward_pre_hook(before(path), with_kwargs=True)
        modules[path].register_forward_hook(after(path))
    live = {modules[path] for path in traced.live}
    lifted = [tensor for _, tensor in traced.lifted(model)]
    wanted = {node for pair in blocks.values() for node in pair}
    with eval_mode(model, live), torch.no_grad():
        values = Recorded(traced.module, wanted)
        values.run(*lifted, *pytree.tree_leaves(clones(inputs)))
        model(*clones(inputs))
    found: dict[str, HandsOn | str] = {}
    for path, (start, end) in blocks.items():
        arguments, output = calls[path]
        try:
            found[path] = _result(arguments, output, values.seen[start], values.seen[end])
        except Unknown as reason:
            found[path] = str(reason)
    return found


class Recorded(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes as they are made."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            self.seen[n] = clones(value)
        return value


def _result(arguments: dict[str, Any], output: Any, start: Tensor, end: Tensor) -> HandsOn:
    places = list(_places(arguments))
    stream = next((place for place, value in places if _same(value, start)), None)
    if stream is None:
        raise Unknown(NO_ARGUMENT)
    streams = 0

    def made(part: Any, key: Any) -> HandsOn:
        nonlocal streams
        if isinstance(part, Tensor):
            if _same(part, end):
                streams += 1
                return {'argument': list(stream)}
            given = next((place for place, value in places if _same(value, part)), None)
            # the trace says that no other of its tensors is used outside
            return {'value': None} if given is None else {'argument': list(given)}
        equal = []
        if part is not None and not isinstance(part, (bool, str)) and not _holds_tensor(part):
            equal = [p for p, value in places if type(value) is type(part) and value == part]
        if equal:
            return {'argument': list(next((p for p in equal if p[-1] == key), equal[0]))}
        if type(part) in (tuple, list):
            kind = type(part).__name__
            return {kind: [made(inner, place) for place, inner in enumerate(part)]}
        if type(part) is dict and all(isinstance(name, str) for name in part):
            return {'dict': {name: made(inner, name) for name, inner in part.items()}}
        if part is None or isinstance(part, (bool, str)):
            return {'value': part}
        if isinstance(part, (int, float)):
            raise Unknown(f'it returns {part}, which is none of the arguments of its forward')
        raise Unknown(f'it returns a {type(part).__name__}, not tensors in tuples, lists or dicts')

    result = made(output, None)
    if not streams:
        raise Unknown(NO_OUTPUT)
    return result


def _places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """An argument and all parts of it; containers that hold no tensor as a whole too."""
    inner: Sequence[tuple[Any, Any]] = ()
    if type(value) is dict:
        inner = list(value.items())
    elif isinstance(value, (tuple, list)):
        inner = list(enumerate(value))
    if place and (isinstance(value, Tensor) or not _holds_tensor(value)):
        yield place, value
    for key, part in inner:
        yield from _places(part, (*place, key))


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _same(value: Any, other: Tensor) -> bool:
    """Whether it is that tensor, but for rounding."""
    if not isinstance(value, Tensor) or value.shape != other.shape or value.dtype != other.dtype:
        return False
    if not value.is_floating_point():
        return torch.equal(value, other)
    scale = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 0.0
    return torch.allclose(value, other, rtol=0, atol=1e-5 * scale, equal_nan=True)
