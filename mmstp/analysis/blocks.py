"""Blocks that may be skipped, found in a walked trace."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

from torch import fx, nn

from .handing_on import HandsOn, find_results
from .ids import Value
from .operators.table import OPERATORS
from .trace import module_stack, operator_name
from .walk import Walk

# a block of less than this share of the network's multiply-adds is not worth a choice
NEGLIGIBLE = 0.002

CALLED_AGAIN = 'its module is called more than once'
OTHER_CHANNELS = 'its output has other channels than its input'


@dataclass(frozen=True)
class Block:
    """A module that may be left out, with its place in the trace, and what is returned instead."""

    path: str
    input: fx.Node
    output: fx.Node
    nodes: frozenset[fx.Node]
    hands_on: HandsOn = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """Consecutive blocks of one container, the output of each being the input of the next.

    The first stays, and may be the only one: it makes the residual stream, or is the first of its
    container. ``stream`` tells streams apart; chains on one stream are one stage. ``order`` is the
    place of the first skippable block's input in the trace.

    A stream is the channels that may be narrowed in it; where all of them stay, its shape.
    """

    first: str
    skippable: tuple[Block, ...]
    stream: frozenset[int]
    order: int

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.first, *(block.path for block in self.skippable))


def find_chains(
    model: nn.Module, walk: Walk, freeze: Mapping[str, str]
) -> tuple[list[Chain], dict[str, str]]:
    """Runs of blocks in order of execution, and why other modules with a way around stay.

    A block is a module with an input and one output of the same shape and the same channels, at
    least one parameter, and a path between the two that only adds or activates. Blocks whose path
    is in ``freeze`` have to stay, with the reason.
    """
    traced = walk.walked[0].trace
    calls = _calls(traced.module.graph)
    candidates, reasons = _candidates(model, walk, calls)
    blocks = _outermost(candidates)
    results = find_results(model, traced, {b.path: (b.input, b.output) for b in blocks})
    chains: list[list[Block]] = []
    between = frozenset(traced.module.graph.nodes).difference(*(block.nodes for block in blocks))
    for block in sorted(blocks, key=lambda b: walk.order[b.output]):
        last = chains[-1][-1] if chains else None
        if (
            last
            and _parent(last.path) == _parent(block.path)
            and _identity_path(last.output, block.input, between)
        ):
            chains[-1].append(block)
        else:
            chains.append([block])
    found = []
    for chain in chains:
        first, skippable = _maker(calls, chain[0]), list[Block]()
        if first is None:  # the stream comes from outside the container
            first, chain = chain[0].path, chain[1:]
        for block in chain:
            result = results[block.path]
            if block.path in freeze:
                reasons[block.path] = freeze[block.path]
            elif isinstance(result, str):
                reasons[block.path] = result
            else:
                skippable.append(replace(block, hands_on=result))
        if skippable:
            value = walk.values[skippable[0].output]
            roots = (root for factor in value.factors for root in walk.ids.roots(factor))
            order = walk.order[chain[0].input]
            stream = frozenset(roots) or frozenset(value.shape)
            found.append(Chain(first, tuple(skippable), stream, order))
    near = [path for one in found for path in one.paths]
    return found, {
        path: reason
        for path, reason in reasons.items()
        if not any(
            is_within(path, {other}) or is_within(other, {path}) for other in near if other != path
        )
    }


def kind_of(path: str) -> str:
    """A path without numbers: modules that play one role in repeated blocks share it."""
    parts = path.split('.')
    return '.'.join('*' if part.isdigit() else part.rstrip('0123456789') for part in parts)


def _calls(graph: fx.Graph) -> dict[str, list[frozenset[fx.Node]]]:
    """The nodes of every call of every module, by module path."""
    nodes: dict[tuple[str, str], set[fx.Node]] = defaultdict(set)
    for node in graph.nodes:
        if node.op == 'call_function':
            for key, path in module_stack(node).items():
                nodes[path, key].add(node)
    calls: dict[str, list[frozenset[fx.Node]]] = defaultdict(list)
    for (path, _), members in nodes.items():
        calls[path].append(frozenset(members))
    return calls


def _candidates(
    model: nn.Module, walk: Walk, calls: dict[str, list[frozenset[fx.Node]]]
) -> tuple[list[Block], dict[str, str]]:
    """Modules that may be blocks, and why others with a way around them may not."""
    modules = dict(model.named_modules())
    macs: dict[str, int] = defaultdict(int)
    for cost in walk.walked[0].costs:
        if cost.kind == 'matmul':
            for path in {'', *cost.paths}:
                macs[path] += cost.factor * math.prod(len(ids) for ids in cost.dims)
    frozen = {root for ids, _ in walk.ids.frozen for root in walk.ids.roots(ids)}
    candidates, reasons = [], {}
    for path, regions in calls.items():
        if not path or path not in modules or macs[path] < NEGLIGIBLE * macs['']:
            continue
        nodes = regions[0]
        inputs, outputs = _border(nodes)
        around = [  # of several inputs (positions, masks) the one that is the residual stream
            (source, sink)
            for sink in outputs
            for source in inputs
            if _same_shape(walk, source, sink) and _identity_path(source, sink, nodes)
        ]
        same = [pair for pair in around if _same_channels(walk, *pair, frozen)]
        if not around:
            continue
        if len(regions) > 1:
            reasons[path] = CALLED_AGAIN
        elif len(outputs) > 1:
            reasons[path] = f'{len(outputs)} tensors that it makes are used outside, not one'
        elif not same:
            reasons[path] = OTHER_CHANNELS
        else:
            candidates.append(Block(path, *same[0], nodes))
    return candidates, reasons


def _border(nodes: frozenset[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Tensors that a call takes (parameters aside) and tensors that it hands on."""
    inputs = {
        source
        for node in nodes
        for source in node.all_input_nodes
        if source not in nodes and not _is_lifted(source)
    }
    outputs = {node for node in nodes if any(user not in nodes for user in node.users)}
    return inputs, outputs


def _is_lifted(node: fx.Node) -> bool:
    """Parameters, buffers and constants come in as placeholders of their own."""
    return node.op == 'get_attr' or (
        node.op == 'placeholder' and node.name.startswith(('p_', 'b_', 'c_'))
    )


def _same_shape(walk: Walk, source: fx.Node, sink: fx.Node) -> bool:
    a, b = walk.values[source], walk.values[sink]
    return isinstance(a, Value) and isinstance(b, Value) and a.shape == b.shape


def _same_channels(walk: Walk, source: fx.Node, sink: fx.Node, frozen: set[int]) -> bool:
    """Whether both hold the same of the channels that may be narrowed, or none."""

    def free(node: fx.Node) -> set[bytes]:
        factors = map(walk.ids.compress, walk.values[node].factors)
        return {f.tobytes() for f in factors if not frozen.issuperset(walk.ids.roots(f))}

    return free(source) == free(sink)


def _identity_path(source: fx.Node, sink: fx.Node, nodes: frozenset[fx.Node]) -> bool:
    """Whether one leads through nodes that neither mix nor gate, pool or normalise."""
    reached, pending = {source}, [source]
    while pending:
        for user in pending.pop().users:
            operator = OPERATORS.get(operator_name(user))
            if operator and operator.passes and user in nodes and user not in reached:
                reached.add(user)
                pending.append(user)
    return sink in reached


def _outermost(candidates: list[Block]) -> list[Block]:
    """Of nested candidates the outer, unless it is a whole stage: several in it, or the same."""
    kept: list[Block] = []
    for block in sorted(candidates, key=lambda b: b.path.count('.'), reverse=True):
        inner = [b for b in kept if b.path.startswith(block.path + '.')]
        same = len(inner) == 1 and inner[0].nodes == block.nodes
        if len(inner) < 2 and not same:
            kept = [b for b in kept if b not in inner] + [block]
    return kept


def is_within(path: str, paths: Container[str]) -> bool:
    """Whether a module or tensor is one of these modules, or in one."""
    parts = path.split('.')
    return any('.'.join(parts[:n]) in paths for n in range(1, len(parts) + 1))


def _parent(path: str) -> str:
    return path.rpartition('.')[0]


def _maker(calls: dict[str, list[frozenset[fx.Node]]], block: Block) -> str | None:
    """The block's sibling whose output is the block's input, where there is one."""
    for path, regions in calls.items():
        sibling = path and path != block.path and _parent(path) == _parent(block.path)
        if sibling and any(block.input in nodes for nodes in regions):
            return path
    return None


def embeddings(walk: Walk) -> set[int]:
    """Channels that are added to what was made of them, and that an operator goes over (a norm).

    A residual stream is what is added to something that was made of it, in a block that may be
    skipped or in one that may not (a transformer that normalises the sum).
    """
    above: dict[fx.Node, int] = {}  # the places of the nodes that a node depends on, as bits
    given, streams = 0, set[int]()
    for node in walk.walked[0].trace.module.graph.nodes:
        place = 1 << walk.order[node]
        above[node] = place
        for source in node.all_input_nodes:
            above[node] |= above[source]
        if node.op == 'placeholder' and not _is_lifted(node):
            given |= place
        if node.op == 'call_function' and operator_name(node) == 'aten::add':
            terms = [term for term in node.args if isinstance(term, fx.Node)]
            if any(above[a] >> walk.order[b] & 1 for a in terms for b in terms if a is not b):
                factors = walk.values[node].factors
                streams |= {root for factor in factors for root in walk.ids.roots(factor)}
    return {
        root
        for reduction in walk.walked[0].reductions
        if above[reduction.node] & given
        for ids in reduction.dims.values()
        for root in walk.ids.roots(ids)
        if root in streams
    }
