"""The traced graph of a dense model with a subnet's dropped channels at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..analysis.analysis import ChannelGraph, Traced
from ..analysis.eval_state import eval_mode
from ..analysis.groups import DimMap
from ..analysis.handing_on import Recorded
from ..analysis.operators.table import OPERATORS
from ..analysis.records import ChannelReduction
from ..analysis.scratch import clones, in_precision
from ..analysis.trace import Trace, caller, operator_name
from ..foreign import pytree
from .plan import SubnetPlan


def tensors_of(outputs: Any) -> list[Tensor]:
    """All tensors in what a model returns."""
    return [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


@torch.no_grad()
def masked_outputs(
    model: nn.Module,
    graph: ChannelGraph,
    traced: Traced,
    plan: SubnetPlan,
    units: Sequence[int],
    inputs: tuple[Any, ...],
) -> list[Tensor]:
    """What a trace gives with dropped channels at zero; outputs narrowed to what is kept.

    Args:
        model: The dense model whose tensors are taken.
        graph: Its analysis.
        traced: One of the analysis' traces.
        plan: The subnet's.
        units: Units that it keeps of every group.
        inputs: Positional arguments, of the size of the trace.
    """
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    lifted = []
    for key, tensor in traced.trace.lifted(model):
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
        for dim, dim_map in graph.dims.get(key, {}).items():
            keep = torch.zeros(tensor.shape[dim], dtype=tensor.dtype)
            keep[torch.from_numpy(dim_map.kept(units))] = 1
            shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
            tensor = tensor * keep.reshape(shape).to(tensor.device)
        lifted.append(tensor)
    skipped = {
        block.output: block
        for chain in graph.chains
        for block in chain.skippable
        if block.path in plan.skipped
    }
    reductions = [
        (one, {dim: torch.from_numpy(over.kept(units)) for dim, over in one.dims.items()})
        for one in traced.reductions
    ]
    masked = _Masked(traced.trace.module, skipped, reductions)
    outputs = masked.run(*lifted, *pytree.tree_leaves(clones(inputs)))
    narrowed = []
    for output, dims in zip(tensors_of(outputs), traced.outputs, strict=True):
        for dim, dim_map in dims.items():
            index = torch.from_numpy(dim_map.kept(units)).to(output.device)
            output = output.index_select(dim, index)
        narrowed.append(output)
    return narrowed


class _Masked(fx.Interpreter):
    """Runs a graph in which some blocks are the identity and some channels are zero.

    Operators over channels (norms, softmax, means) see those that are kept alone, as they would in
    the narrow network.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        skipped: Mapping[fx.Node, Any],
        reductions: Sequence[tuple[ChannelReduction[DimMap], Mapping[int, Tensor]]],
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._outputs = skipped
        self._inside = {node for block in skipped.values() for node in block.nodes}
        self._over = {one.node: kept for one, kept in reductions}

    def run_node(self, n: fx.Node) -> Any:
        if n in self._outputs:
            return self.env[self._outputs[n].input]
        if n in self._inside:
            return None
        kept = self._over.get(n)
        if kept is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            return over_kept(n, kept, list(args), kwargs)
        try:
            return super().run_node(n)
        except RuntimeError:  # in float64: the traced code asked for a dtype, which was float32
            inputs = self.fetch_args_kwargs_from_env(n)
            kinds = {x.dtype for x in tensors_of(inputs) if x.is_floating_point()}
            if kinds != {torch.float32, torch.float64}:
                raise
            args, kwargs = in_precision(torch.float64, inputs)
            assert callable(n.target)
            return n.target(*args, **kwargs)


def over_kept(
    node: fx.Node, kept: Mapping[int, Tensor], args: list[Any], kwargs: dict[str, Any]
) -> Any:
    """Runs an operator on the kept channels; the others are zero in what it returns."""
    x: Tensor = args[0]
    for dim, places in kept.items():
        args[0] = args[0].index_select(dim, places.to(x.device))
    narrowed = OPERATORS[operator_name(node)].narrowed
    if narrowed is not None:
        args, kwargs = narrowed(args, kwargs, kept, x.dim())
    assert callable(node.target)
    out = node.target(*args, **kwargs)
    outs = [out] if isinstance(out, Tensor) else list(out)
    for i, one in enumerate(outs):
        if one.shape == args[0].shape:
            for dim, places in kept.items():
                shape = [*one.shape]
                shape[dim] = x.shape[dim]
                one = one.new_zeros(shape).index_copy(dim, places.to(x.device), one)
        outs[i] = one
    return outs[0] if isinstance(out, Tensor) else tuple(outs)


@torch.no_grad()
def outputs_and_trace(
    model: nn.Module, traced: Trace, inputs: tuple[Any, ...]
) -> list[tuple[str, Tensor, Tensor]]:
    """The output of every module that has none inside, by path, and what the trace has for it.

    In eval mode, in the order in which they run.
    """
    calls = (node for node in traced.module.graph.nodes if node.op == 'call_function')
    last = {caller(node): node for node in calls}
    recorded = Recorded(traced.module, set(last.values()))
    lifted = [tensor for _, tensor in traced.lifted(model)]
    recorded.run(*lifted, *pytree.tree_leaves(clones(inputs)))
    found: list[tuple[str, Tensor, Tensor]] = []

    def note(path: str, output: Any) -> None:
        expected = recorded.seen[last[path]]
        if isinstance(output, Tensor) and isinstance(expected, Tensor):
            found.append((path, output.clone(), expected))

    handles = [
        module.register_forward_hook(lambda _, args, output, path=path: note(path, output))
        for path, module in model.named_modules()
        if path in last and not list(module.children())
    ]
    with eval_mode(model):
        model(*clones(inputs))
    for handle in handles:
        handle.remove()
    return found
