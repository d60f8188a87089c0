"""The traces of a model, walked once with channel ids.

A ResNet's ``y = bn2(conv2(relu(bn1(conv1(x))))) + x``, with 64 channels, in ids::

    conv1.weight  (64, 64, 3, 3)   rows 0…63, columns 64…127
    conv1's out   (1, 64, 56, 56)  0…63 along dimension 1      x's ids are tied to 64…127
    bn1, relu     the same; bn1.weight's own ids are tied to 0…63
    conv2.weight  (64, 64, 3, 3)   rows 128…191, columns tied to 0…63
    + x           128…191 are tied to x's: the residual stream is one group

Whatever is tied at the end is kept or dropped together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ..foreign import pytree
from .ids import ChannelIds, Ids, Value, one_dim, plain, varying
from .operators.table import OPERATORS
from .records import ChannelReduction, Cost, SizedCall
from .trace import Trace, caller, first_keys, module_stack, operator_name, output_shape

OUTPUT = 'an output of the model'
NO_HANDLER = 'has no handler'
THE_MODEL = 'the model'  # the name of what is in none of its modules


@dataclass(frozen=True)
class Producer:
    """An operator that makes channels.

    Attributes:
        path: The layer whose weight it takes; of a weight of the model itself its key.
        ids: The channels.
        order: Its place in the trace.
        resolution: The spatial shape of its output.
        key: The weight's state-dict key; the path where the weight is worked out.
    """

    path: str
    ids: Ids
    order: int
    resolution: tuple[int, ...]
    key: str


@dataclass
class Walked:
    """What was found on the way through one trace; ``outputs`` are those of the model."""

    trace: Trace
    tensors: dict[str, Value] = field(default_factory=dict)
    costs: list[Cost[Ids]] = field(default_factory=list)
    calls: list[SizedCall[Ids]] = field(default_factory=list)
    reductions: list[ChannelReduction[Ids]] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


class Walk:
    """Carries channel ids through the traces of a model, with inputs of several sizes.

    Each trace is walked with ids of its own for every parameter, which are tied at the end: what
    one of them couples is coupled, and none sees along which dimensions another has tied what.

    Attributes:
        ids: The union-find.
        order: The place of every node in its graph.
        values: The value of every node; a tuple where the operator returns several tensors.
        tensors: The value of every parameter and buffer, by state-dict key.
        aliases: Further state-dict keys of shared tensors, and the key each is known by.
        producers: Operators of the first trace that make new channels.
        layers_kept: Others with a weight that make none that could go: place, layer and reason.
        walked: For every trace what was found on the way.
        unknown: Operators without a handler that channels reach, with the modules that call them.
    """

    def __init__(self, model: nn.Module, traces: Sequence[Trace], fix_outputs: bool = True) -> None:
        self.ids = ChannelIds()
        self.order: dict[fx.Node, int] = {}
        self.values: dict[fx.Node, Any] = {}
        self.tensors: dict[str, Value] = {}
        self.producers: list[Producer] = []
        self.layers_kept: list[tuple[int, str, str]] = []
        self.walked: list[Walked] = []
        self.unknown: dict[str, list[str]] = defaultdict(list)
        self._slices: dict[tuple[fx.Node, int], list[tuple[int, int, int]]] = defaultdict(list)
        self._keys: dict[int, str] = {}
        known = first_keys(model)
        self.aliases = {key: first for key, first in known.items() if key != first}
        for traced in traces:
            self._follow(traced, known, fix_outputs)
        for walked in self.walked:
            for key, value in walked.tensors.items():
                first = self.tensors.setdefault(key, value)
                if first.shape == value.shape:  # else a buffer that a forward made for its input
                    for one, other in zip(first.factors, value.factors, strict=True):
                        self.ids.unite(one, other)
        self._tie_slices()
        self.ids.rectangular(_tensors(list(self.values.values())))

    def _follow(self, traced: Trace, known: Mapping[str, str], fix_outputs: bool) -> None:
        self.walked.append(Walked(traced))
        names = iter(traced.names)  # of the first placeholders; the model's inputs follow
        for place, node in enumerate(traced.module.graph.nodes):
            self.order[node] = place
            if node.op == 'placeholder':
                key = known.get(next(names, ''))
                self.values[node] = plain(node) if key is None else self._tensor(key, node)
            elif node.op == 'call_function':
                self.values[node] = self._call(node)
            elif node.op == 'get_attr':
                self.values[node] = Value(())
            elif node.op == 'output':
                self.walked[-1].outputs = _tensors(_replace(node.args, self.values))
                for value in self.walked[-1].outputs if fix_outputs else ():
                    self.ids.freeze_value(value, OUTPUT)

    def _tensor(self, key: str, node: fx.Node) -> Value:
        """A parameter's or buffer's value, with ids of its own in this trace."""
        tensors = self.walked[-1].tensors
        if key not in tensors:
            shape = output_shape(node)
            fresh = [
                self.ids.fresh(size).reshape(one_dim(len(shape), dim))
                for dim, size in enumerate(shape)
                if size > 1
            ]
            tensors[key] = Value(shape, fresh)
            self._keys[id(tensors[key])] = key
        return tensors[key]

    def _call(self, node: fx.Node) -> Any:
        name = operator_name(node)
        args, kwargs = _replace(node.args, self.values), _replace(node.kwargs, self.values)
        reason = f'operator {name!r} {NO_HANDLER}'
        if name in OPERATORS:
            try:
                return OPERATORS[name].handler(self, node, *args, **kwargs)
            except Exception as error:  # arguments that the handler does not expect
                reason = f'operator {name!r}: its handler raises {type(error).__name__}: {error}'
        values = _tensors((args, kwargs))
        path = caller(node) or THE_MODEL
        held = any(value.factors and not self.ids.of_constants(value) for value in values)
        if held and path not in self.unknown[name]:
            self.unknown[name].append(path)
        return self.stays(node, values, reason)

    # --- what handlers call ---------------------------------------------------------------------

    def lines(self, value: Value, dim: int) -> list[Ids]:
        """The ids along one dimension, as a vector; none where there are none."""
        factor = value.factor(dim)
        if factor is None:
            return []
        return [self.ids.tie(factor, [d for d in varying(factor) if d != dim]).reshape(-1)]

    def produced(
        self, node: fx.Node, weight: Value, dim: int = 0, channels: int = 1, ids: Ids | None = None
    ) -> None:
        """The operator makes new channels.

        Args:
            node: The operator's.
            weight: What it makes them with.
            dim: The weight's dimension that they are.
            channels: The output's dimension that they are.
            ids: The channels, where they are no dimension of the weight.
        """
        lines = self.lines(weight, dim) if ids is None else [ids]
        key = self._keys.get(id(weight))
        path = (caller(node) or THE_MODEL) if key is None else key.rpartition('.')[0] or key
        shape = output_shape(node)
        space = shape[2:] if channels == 1 else shape[1:-1]
        for line in lines if len(self.walked) == 1 else ():
            self.producers.append(Producer(path, line, self.order[node], space, key or path))

    def are_layer(self, values: Sequence[Value]) -> bool:
        """Whether these are parameters of one module inside the model."""
        paths = {self._keys.get(id(value), '').rpartition('.')[0] for value in values}
        return len(paths) == 1 and '' not in paths

    def stays(self, node: fx.Node, values: Sequence[Value], reason: str) -> Any:
        """All that the operator's tensors hold has to stay; returns its output's value."""
        for value in values:
            self.ids.freeze_value(value, reason)
        held = [value for value in values if value.factors and id(value) in self._keys]
        if held and len(self.walked) == 1:
            self.layers_kept.append((self.order[node], caller(node) or THE_MODEL, reason))
        return plain(node)

    def cost(
        self, node: fx.Node, kind: str, dims: Sequence[tuple[Value, int]], factor: int = 1
    ) -> None:
        """Records a cost: the product of the sizes of ``dims``, times ``factor``."""
        self.walked[-1].costs.append(cost_of(kind, dims, factor, module_stack(node).values()))

    def elementwise_cost(self, node: fx.Node, kind: str, value: Value) -> None:
        """Records a cost of one per element of ``value``."""
        self.cost(node, kind, value.all_dims)

    def sizes(
        self,
        node: fx.Node,
        sizes: Sequence[tuple[Value, int]],
        runs: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    ) -> None:
        """The operator is given these sizes: each that of a dimension of a value."""
        supplies = OPERATORS[operator_name(node)].supplies
        if supplies is None or node.target is torch.ops.aten.view.dtype:
            return
        call = SizedCall(
            supplies,
            tuple(value.shape[dim] for value, dim in sizes),
            tuple(value.ids_along(dim) for value, dim in sizes),
            tuple((tuple(before), tuple(after)) for before, after in runs),
            tuple((path, key) for key, path in module_stack(node).items()),
            made=all(self.ids.of_constants(value) for value, _ in sizes),
        )
        self.walked[-1].calls.append(call)

    def over_channels(self, node: fx.Node, x: Value, dims: Sequence[int]) -> Value:
        """The operator goes over ``dims`` of its first argument: statistics, a softmax.

        Where a factor varies along other dimensions too, the operator sees one position of those
        at a time, and only those can be dropped. Returns the value so tied.
        """
        dims = [dim % len(x.shape) for dim in dims]
        x = self.ids.group_along(x, dims)
        along = {d: ids for d in dims if (ids := x.ids_along(d)) is not None}
        if along:
            self.walked[-1].reductions.append(ChannelReduction(node, along))
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
                self.ids.unite_parts(factor, dim, len(parts))
            else:
                self.ids.keep_whole(value, [dim], f'sliced into parts {[p[:2] for p in parts]}')


def cost_of(
    kind: str, dims: Iterable[tuple[Value, int]], factor: int, paths: Iterable[str]
) -> Cost[Ids]:
    """The product of the sizes of ``dims``, times ``factor``."""
    counted = []
    for value, dim in dims:
        if (ids := value.ids_along(dim)) is None:
            factor *= value.shape[dim]
        else:
            counted.append(ids)
    return Cost(kind, factor, tuple(counted), tuple(paths))


def _replace(arguments: Any, values: dict[fx.Node, Any]) -> Any:
    return fx.map_arg(arguments, lambda node: values[node])


def _tensors(values: Any) -> list[Value]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Value)]
