"""Blocks that may be skipped, found in a walked trace."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from torch import fx, nn

from .ids import Value
from .operators.table import OPERATORS
from .trace import module_stack, operator_name
from .walk import Walk

# a block of less than this share of the network's multiply-adds is not worth a choice
NEGLIGIBLE = 0.002


@dataclass(frozen=True)
class Block:
    """A module that may be replaced by the identity, with its place in the trace."""

    path: str
    input: fx.Node
    output: fx.Node
    nodes: frozenset[fx.Node]


@dataclass(frozen=True)
class Chain:
    """Consecutive blocks of one container, the output of each being the input of the next.

    The first stays, and may be the only one: it makes the residual stream, or is the first of its
    container. ``residual`` are the channels of the stream; chains that share them are one stage.
    ``order`` is the place of the first skippable block's input in the trace.
    """

    first: str
    skippable: tuple[Block, ...]
    residual: frozenset[int]
    order: int

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.first, *(block.path for block in self.skippable))


def find_chains(model: nn.Module, walk: Walk, graph: fx.Graph) -> list[Chain]:
    """Runs of blocks in order of execution.

    A block is a module with an input and one output of the same shape and the same channels, at
    least one parameter, and a path between the two that only adds or activates.
    """
    calls = _calls(graph)
    blocks = _outermost(_candidates(model, walk, calls))
    chains: list[list[Block]] = []
    for block in sorted(blocks, key=lambda b: walk.order[b.output]):
        last = chains[-1][-1] if chains else None
        if last and last.output is block.input and _parent(last.path) == _parent(block.path):
            chains[-1].append(block)
        else:
            chains.append([block])
    found = []
    for chain in chains:
        first, skippable = _maker(calls, chain[0]), chain
        if first is None:  # the stream comes from outside the container
            first, skippable = chain[0].path, chain[1:]
        factors = walk.values[chain[0].output].factors
        stream = frozenset(root for factor in factors for root in walk.ids.roots(factor))
        found.append(Chain(first, tuple(skippable), stream, walk.order[chain[0].input]))
    return found


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
) -> list[Block]:
    modules = dict(model.named_modules())
    macs: dict[str, int] = defaultdict(int)
    for cost in walk.walked[0].costs:
        if cost.kind == 'matmul':
            for path in {'', *cost.paths}:
                macs[path] += cost.factor * math.prod(len(ids) for ids in cost.dims)
    candidates = []
    for path, regions in calls.items():
        if not path or len(regions) != 1 or path not in modules:
            continue
        (nodes,) = regions
        inputs, outputs = _border(nodes)
        if len(outputs) != 1 or macs[path] < NEGLIGIBLE * macs['']:
            continue
        (sink,) = outputs
        for source in inputs:  # of several (positions, masks) the one that is the residual stream
            if _same(walk, source, sink) and _identity_path(source, sink, nodes):
                candidates.append(Block(path, source, sink, nodes))
                break
    return candidates


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


def _same(walk: Walk, source: fx.Node, sink: fx.Node) -> bool:
    a, b = walk.values[source], walk.values[sink]
    if not isinstance(a, Value) or not isinstance(b, Value) or a.shape != b.shape:
        return False
    first, second = ({walk.ids.compress(f).tobytes() for f in v.factors} for v in (a, b))
    return bool(first) and first == second


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


def _parent(path: str) -> str:
    return path.rpartition('.')[0]


def _maker(calls: dict[str, list[frozenset[fx.Node]]], block: Block) -> str | None:
    """The block's sibling whose output is the block's input, where there is one."""
    for path, regions in calls.items():
        sibling = path and path != block.path and _parent(path) == _parent(block.path)
        if sibling and any(block.input in nodes for nodes in regions):
            return path
    return None
