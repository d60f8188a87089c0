"""Checks of a supernet against its trace, done once when it is made.

Two ways to one output: the model's own forward with narrow layers, and the traced graph of the
dense model with the dropped channels' weights set to zero. They share neither the slicing nor the
model's Python code, so a wrong index map or a size that the code holds as a number shows up. What
differs is found kind by kind, and has to stay whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..analysis.analysis import ChannelGraph
from ..analysis.eval_state import eval_mode
from ..analysis.groups import DimMap
from ..analysis.operators.table import OPERATORS
from ..analysis.records import ChannelReduction
from ..analysis.trace import operator_name
from ..analysis.walk import first_keys
from ..errors import VerificationError
from ..foreign import pytree
from .modules import ActiveSubnet, DynamicMixin
from .plan import DENSE, SubnetPlan

# Differences allowed, relative to the largest output; float64 decides where float32 does not pass.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-7}


class Verifier:
    """A randomised copy of a model, run both ways.

    Args:
        model: A model whose layers have been made dynamic; not touched.
        graph: Its analysis.
        inputs: Example inputs, of the size of the trace.
        traced: Which of the analysis' traces it is held against.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, inputs: Sequence[Tensor], traced: int = 0
    ) -> None:
        self._graph, self._traced = graph, graph.traced[traced]
        self._name = type(model).__name__
        self._model = copy.deepcopy(model)
        self._subnet: ActiveSubnet = next(
            (vars(m)['_subnet'] for m in self._model.modules() if isinstance(m, DynamicMixin)),
            ActiveSubnet(),
        )
        for path, module in self._model.named_modules():
            module.training = path in self._traced.trace.live
        generator = torch.Generator().manual_seed(0)
        self._inputs = [_random_like(x, generator) for x in inputs]
        _randomize(self._model, generator)

    @property
    def supplied(self) -> set[str]:
        """Paths of modules whose code gave sizes that were not the subnet's."""
        return self._subnet.supplied

    def check_dense(self) -> None:
        """Whether the trace computes what the dense model does.

        Raises:
            VerificationError: If not.
        """
        with eval_mode(self._model):
            reason = self.difference(DENSE, [group.units for group in self._graph.groups])
        if reason:
            raise VerificationError(
                f'the trace of {self._name} does not compute what the model does '
                f'({reason}): its forward depends on values, on chance or on its own state'
            )

    def difference(self, plan: SubnetPlan, units: Sequence[int]) -> str | None:
        """How the two ways disagree for a subnet; None where they agree."""
        reason = None
        for dtype in (torch.float32, torch.float64):
            self._model.to(dtype)
            inputs = [x.to(dtype) if x.is_floating_point() else x for x in self._inputs]
            reason, rounding = self._difference(plan, units, inputs, _TOLERANCE[dtype])
            if not rounding:
                break
        return reason

    @torch.no_grad()
    def _difference(
        self, plan: SubnetPlan, units: Sequence[int], inputs: list[Tensor], tolerance: float
    ) -> tuple[str | None, bool]:
        """The difference, and whether more digits may make it go."""
        self._subnet.plan = plan
        try:
            narrow = _tensors(self._model(*inputs))
        except Exception as error:  # whatever the model's code raises about sizes it did not expect
            return f'its forward fails when narrowed: {type(error).__name__}: {error}', False
        finally:
            self._subnet.plan = None
        try:
            masked = self._masked_outputs(plan, units, inputs)
        except Exception as error:  # a trace that lacks what the exporter cannot express
            return f'its trace fails to run: {type(error).__name__}: {error}', False
        for a, b in zip(narrow, masked, strict=True):
            if a.shape != b.shape:
                shapes = f'{tuple(a.shape)} when narrowed, not {tuple(b.shape)}'
                return f'its output has shape {shapes}', False
            scale = b.abs().max().item()
            gap = (a - b).abs().max().item()
            if not gap <= tolerance * scale or not math.isfinite(scale):
                values = f'by {gap:.1e} where values reach {scale:.1e}'
                return f'its narrowed output differs {values}', True
        return None, False

    def _masked_outputs(
        self, plan: SubnetPlan, units: Sequence[int], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """The dense trace with dropped channels at zero; outputs narrowed to what is kept."""
        parameters: dict[str, Tensor] = dict(self._model.named_parameters())
        dtype = next(iter(parameters.values())).dtype
        others = {**self._traced.trace.constants, **dict(self._model.named_buffers())}
        known = first_keys(self._model)  # the trace may name a shared tensor by another key
        lifted = []
        for name in self._traced.trace.names:
            key = known.get(name, name)
            tensor = parameters.get(key)
            if tensor is None:
                constant = others[key]
                if constant.is_floating_point():
                    constant = constant.to(dtype)
                lifted.append(constant)
                continue
            for dim, dim_map in self._graph.dims.get(key, {}).items():
                keep = torch.zeros(tensor.shape[dim], dtype=tensor.dtype)
                keep[torch.from_numpy(dim_map.kept(units))] = 1
                shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
                tensor = tensor * keep.reshape(shape).to(tensor.device)
            lifted.append(tensor)
        skipped = {
            block.output: block
            for chain in self._graph.chains
            for block in chain.skippable
            if block.path in plan.skipped
        }
        reductions = [
            (one, {dim: torch.from_numpy(over.kept(units)) for dim, over in one.dims.items()})
            for one in self._traced.reductions
        ]
        outputs = _Masked(self._traced.trace.module, skipped, reductions).run(*lifted, *inputs)
        narrowed = []
        for output, dims in zip(_tensors(outputs), self._traced.outputs, strict=True):
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
        if kept is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return over_kept(n, kept, list(args), kwargs)


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


def _tensors(outputs: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


def _random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    if not x.is_floating_point():
        return x.clone()
    return torch.randn(x.shape, generator=generator).to(x)


def _randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Values that keep signals alive through any depth.

    A fresh network can hide mistakes: residual branches that start at zero, outputs of 1e-10.
    Buffers other than running statistics (positions, frequencies, means of images) stay.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        statistic = name.endswith(('running_mean', 'running_var'))
        if not tensor.is_floating_point() or not (isinstance(tensor, nn.Parameter) or statistic):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            fan_in = tensor[0].numel()
            value = noise * math.sqrt(2 / fan_in)
        elif name.endswith(('bias', 'running_mean')):
            value = noise * 0.1
        else:
            value = 1 + noise.clamp(-2, 2) * 0.2
        tensor.data.copy_(value)
