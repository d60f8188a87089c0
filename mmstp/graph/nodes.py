"""What the nodes of an exported graph say about themselves."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from .values import Value


def module_stack(node: fx.Node) -> dict[str, str]:
    """The modules a node was called in, outermost first: call key to module path."""
    stack = node.meta.get('nn_module_stack') or {}
    return {key: path for key, (path, _) in stack.items()}


def caller(node: fx.Node) -> str:
    """The path of the module whose own code called the operator."""
    return next(reversed(module_stack(node).values()), '')


def operator_name(node: fx.Node) -> str:
    """The operator's name without namespace, overload and the mark of in-place variants."""
    if node.target is operator.getitem:
        return 'getitem'
    schema = getattr(node.target, '_schema', None)
    name = schema.name.split('::')[-1] if schema else getattr(node.target, '__name__', '?')
    return name if name.startswith('__') else name.removesuffix('_')


def plain(node: fx.Node) -> Any:
    """The value of a tensor (or of several) of which nothing can be pruned."""
    value = node.meta.get('val')
    if isinstance(value, (tuple, list)):
        return tuple(Value(tuple(getattr(part, 'shape', ()))) for part in value)
    return Value(tuple(getattr(value, 'shape', ())))


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's (first) output, from the trace."""
    value = node.meta['val']
    first = value[0] if isinstance(value, (tuple, list)) else value
    return tuple(first.shape)
