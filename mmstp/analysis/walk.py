"""One trace of a model, walked once with channel ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from .ids import ChannelIds, Ids, Value, plain, varying
from .operators.table import HANDLERS
from .trace import Trace, caller, operator_name


@dataclass(frozen=True)
class CostRow:
    """What one operator costs: the product of the sizes of ``dims``, times ``factor``."""

    kind: str
    node: fx.Node
    dims: tuple[Ids, ...]
    factor: int


@dataclass(frozen=True)
class Producer:
    """An operator that makes channels, the layer whose weight it takes, and their ids."""

    node: fx.Node
    path: str
    ids: Ids


@dataclass(frozen=True)
class SizedNode:
    """An operator that is given sizes; a module's Python code may hold them as numbers.

    Attributes:
        node: The operator.
        sizes: Of the output's dimensions, or of the parts of a split.
        ids: For each of the sizes the ids that it counts; None where there are none.
        runs: Of a reshape: which dimensions of the input become which of the output.
    """

    node: fx.Node
    sizes: tuple[int, ...]
    ids: tuple[Ids | None, ...]
    runs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Renormalisation:
    """An operator over channels: what it gives for one depends on which others there are.

    ``dims`` holds the ids along the dimensions of its first argument that it goes over.
    """

    node: fx.Node
    dims: Mapping[int, Ids]


class Walk:
    """Carries channel ids through a trace.

    Attributes:
        ids: The union-find.
        order: The place of every node in the graph.
        values: The value of every node; a tuple where the operator returns several tensors.
        tensors: The value of every parameter and buffer, by state-dict key.
        outputs: The values of the model's outputs.
        producers: Operators that make new channels.
        rows: The cost of every operator.
        sized: The operators that are given sizes of channels.
        renormalised: The operators over channels.
        unknown: Operators without a handler that channels reach, with the modules that call them.
    """

    def __init__(self, model: nn.Module, traced: Trace, fix_outputs: bool = True) -> None:
        self.ids = ChannelIds()
        self.values: dict[fx.Node, Any] = {}
        self.tensors: dict[str, Value] = {}
        self.producers: list[Producer] = []
        self.rows: list[CostRow] = []
        self.sized: list[SizedNode] = []
        self.renormalised: list[Renormalisation] = []
        self.outputs: list[Value] = []
        self.unknown: dict[str, list[str]] = defaultdict(list)
        self._slices: dict[tuple[fx.Node, int], list[tuple[int, int, int]]] = defaultdict(list)
        self._keys: dict[int, str] = {}

        known = first_keys(model)
        graph = traced.module.graph
        self.order = {node: place for place, node in enumerate(graph.nodes)}
        placeholders = [node for node in graph.nodes if node.op == 'placeholder']
        for node, name in zip(placeholders, traced.names, strict=False):
            value = Value(tuple(node.meta['val'].shape))
            if name in known:
                self._give_ids(value)
                self.tensors[known[name]] = value
                self._keys[id(value)] = known[name]
            self.values[node] = value
        for node in placeholders[len(traced.names) :]:
            self.values[node] = plain(node)
        for node in graph.nodes:
            if node.op == 'call_function':
                self.values[node] = self._call(node)
            elif node.op == 'get_attr':
                self.values[node] = Value(())
            elif node.op == 'output':
                self.outputs = _tensors(_replace(node.args, self.values))
                for value in self.outputs if fix_outputs else ():
                    self.ids.freeze_value(value, 'an output of the model')
        self._tie_slices()
        self.ids.rectangular(
            [value for values in self.values.values() for value in _tensors(values)]
        )

    def _give_ids(self, value: Value) -> None:
        rank = len(value.shape)
        for dim, size in enumerate(value.shape):
            if size > 1:
                shape = [-1 if d == dim else 1 for d in range(rank)]
                value.factors.append(self.ids.fresh(size).reshape(shape))

    def _call(self, node: fx.Node) -> Any:
        name = operator_name(node)
        args, kwargs = _replace(node.args, self.values), _replace(node.kwargs, self.values)
        handler = HANDLERS.get(name)
        if handler is not None:
            return handler(self, node, *args, **kwargs)
        held = [value for value in _tensors((args, kwargs)) if value.factors]
        path = caller(node)
        if held and path not in self.unknown[name]:
            self.unknown[name].append(path)
        for value in held:
            self.ids.freeze_value(value, f'operator {name!r} has no handler')
        return plain(node)

    # --- what handlers call ---------------------------------------------------------------------

    def line(self, value: Value, dim: int) -> Ids | None:
        """The ids along one dimension, as a vector; None where there are none."""
        factor = value.factor(dim)
        if factor is None:
            return None
        return self.ids.tie(factor, [d for d in varying(factor) if d != dim]).reshape(-1)

    def produced(self, node: fx.Node, weight: Value, dim: int = 0) -> None:
        """The operator makes new channels: dimension ``dim`` of ``weight``."""
        key = self._keys.get(id(weight))
        path = caller(node) if key is None else key.rpartition('.')[0]
        if (line := self.line(weight, dim)) is not None:
            self.producers.append(Producer(node, path, line))

    def cost(
        self, node: fx.Node, kind: str, dims: Sequence[tuple[Value, int]], factor: int = 1
    ) -> None:
        """Records a cost: the product of the sizes of ``dims``, times ``factor``."""
        sizes: list[Ids] = []
        for value, dim in dims:
            ids = value.factor(dim)
            if ids is None:
                factor *= value.shape[dim]
            else:
                sizes.append(_vector(ids, dim))
        self.rows.append(CostRow(kind, node, tuple(sizes), factor))

    def elementwise_cost(self, node: fx.Node, kind: str, value: Value) -> None:
        """Records a cost of one per element of ``value``."""
        self.cost(node, kind, [(value, dim) for dim in range(len(value.shape))])

    def sizes(
        self,
        node: fx.Node,
        sizes: Sequence[tuple[Value, int]],
        runs: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    ) -> None:
        """The operator is given these sizes: each that of a dimension of a value."""
        self.sized.append(
            SizedNode(
                node,
                tuple(value.shape[dim] for value, dim in sizes),
                tuple(
                    None if (ids := value.factor(dim)) is None else _vector(ids, dim)
                    for value, dim in sizes
                ),
                tuple((tuple(before), tuple(after)) for before, after in runs),
            )
        )

    def over_channels(self, node: fx.Node, x: Value, dims: Sequence[int]) -> Value:
        """The operator goes over ``dims`` of its first argument: statistics, a softmax.

        Where a factor varies along other dimensions too, the operator sees one position of those
        at a time, and only those can be dropped. Returns the value so tied.
        """
        dims = [dim % len(x.shape) for dim in dims]
        x = self.ids.group_along(x, dims)
        along = {d: _vector(ids, d) for d in dims if (ids := x.factor(d)) is not None}
        if along:
            self.renormalised.append(Renormalisation(node, along))
        return x

    def sliced(self, node: fx.Node, dim: int, start: int, stop: int, step: int) -> None:
        """A part of the channels is taken; settled when all parts of the tensor are known."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        self._slices[source, dim].append((start, stop, step))

    def _tie_slices(self) -> None:
        """Equal slices that make up a dimension keep the same channels; others keep it whole."""
        for (source, dim), parts in self._slices.items():
            value = self.values[source]
            factor, size = value.factor(dim), value.shape[dim]
            parts = sorted({part for part in parts if part[0] < part[1]})
            if not parts:
                continue
            length = parts[0][1] - parts[0][0]
            equal = [(at, at + length, 1) for at in range(0, size, length)]
            if parts == equal and size % length == 0:
                first, *rest = (factor.take(range(a, b), axis=dim) for a, b, _ in parts)
                for part in rest:
                    self.ids.unite(first, part)
            else:
                self.ids.keep_whole(value, [dim], f'sliced into parts {[p[:2] for p in parts]}')


def first_keys(model: nn.Module) -> dict[str, str]:
    """For every parameter and buffer key the first key of the same (maybe shared) tensor."""
    first: dict[int, str] = {}
    keys = {}
    for named in (model.named_parameters, model.named_buffers):
        for key, tensor in named(remove_duplicate=False):
            keys[key] = first.setdefault(id(tensor), key)
    return keys


def _vector(ids: Ids, dim: int) -> Ids:
    """The ids along ``dim``; what else the factor varies over is tied to it in the end."""
    index = tuple(slice(None) if d == dim else 0 for d in range(ids.ndim))
    return ids[index]


def _replace(arguments: Any, values: dict[fx.Node, Any]) -> Any:
    return fx.map_arg(arguments, lambda node: values[node])


def _tensors(values: Any) -> list[Value]:
    if isinstance(values, Value):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    if isinstance(values, (tuple, list)) or hasattr(values, '__iter__'):
        return [] if isinstance(values, str) else [v for part in values for v in _tensors(part)]
    return []
