"""A model together with its search space: every subnet of it can be run and cut out."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.utils import _pytree as pytree

from .architecture import Architecture
from .calibration import calibrate, norms_with_statistics
from .compact import CompactPlan, StageShapes, compact
from .cost import CostModel
from .dynamic import (
    ActiveSubnet,
    DynamicMixin,
    Selection,
    SubnetPlan,
    make_dynamic,
    make_static,
    plan_subnet,
    sized_calls,
    sizes_of,
)
from .graph import (
    WHOLE,
    ChannelGraph,
    TraceError,
    first_keys,
    kept_by_forward,
    kind_of,
    same_groups,
    trace,
)
from .space import SearchSpace
from .stages import Stage
from .verify import Verifier


class SupernetError(RuntimeError):
    """A model that cannot be run as its subnets."""


class Supernet:
    """Weight sharing: the dense model is the main network, its first blocks and channels subnets.

    Layers of ``model`` become dynamic in place (`mmstp.dynamic`); its state-dict keys, Parameter
    objects, modes and outputs do not change.

    Args:
        model: Any module that `torch.export` can follow.
        inputs: An example input or a tuple of them; costs are counted for these. They are taken to
            the device and precision of the model's parameters.
        fix_outputs: Keep the channels of the model's outputs whole.
        **space: Options of `SearchSpace`.

    Attributes:
        model: The model.
        space: The architectures that can be chosen.
        cost: Their multiply-adds and parameters.
        statistics: Running statistics of norm layers that subnets have for themselves, by
            state-dict key; those of the main network serve the others. See `calibrate`.
        one_size: Why subnets may not run on inputs of another size than the example's; '' where
            they do, wherever the dense model does.

    Raises:
        TraceError: If the model cannot be traced.
        SpaceError: If nothing can be pruned, or an option is wrong.
        SupernetError: If the model is wrapped (DDP), compiled, scripted or without values, if it
            recomputes blocks in the backward pass (``with_cp=True``), or is part of a supernet
            already.
        VerificationError: If the trace does not compute what the model does.

    Example:
        >>> supernet = Supernet(model, inputs=torch.zeros(1, 3, 224, 224))
        >>> arch = supernet.space.sample(random.Random(0))
        >>> with supernet.activate(arch):
        ...     y = model(x)
        >>> compact = supernet.export(arch)
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor | Sequence[Tensor],
        fix_outputs: bool = True,
        **space: Any,
    ) -> None:
        _refuse(model)
        self.model = model
        self.inputs = _like_parameters(
            model, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        )
        traced = trace(model, self.inputs)
        frozen: dict[str, str] = {}
        while True:
            self.graph = ChannelGraph.from_trace(model, traced, fix_outputs, frozen)
            self.space = SearchSpace(self.graph, **space)
            self._calls = sized_calls(model, self.graph.calls)
            self._aliases = {
                key: first
                for key, first in first_keys(model).items()
                if key != first and first in self.graph.dims
            }
            self._active = ActiveSubnet()
            self._make_dynamic()
            try:
                failing = self._verify()
            finally:
                self._make_static()
            if not failing:
                break
            if kept_by_forward(model, self.inputs):
                traced, frozen = trace(model, self.inputs), {}
            else:
                frozen.update(failing)
        self.one_size = self._other_ways(fix_outputs, frozen) if self._calls else ''
        self._make_dynamic()
        self.cost = CostModel(self.graph, self.space)
        self.statistics: dict[Architecture, dict[str, Tensor]] = {}
        self._plan = self._cached_plans()

    def _make_dynamic(self) -> None:
        tensors: dict[str, set[str]] = {}
        sizes: dict[str, set[str]] = {}
        for key in [*self.graph.dims, *self._aliases]:
            path, _, name = key.rpartition('.')
            tensors.setdefault(path, set()).add(name)
        for key, _ in self.model.named_buffers(remove_duplicate=False):
            # also those that keep their size: a subnet's pass must not write to them
            path, _, name = key.rpartition('.')
            tensors.setdefault(path, set()).add(name)
        for path in tensors:
            sizes[path] = set(sizes_of(self.model.get_submodule(path), {}))
        skippable = set(self.space.min_depth())
        once = dict(self.model.named_modules())  # a shared module by its first path alone
        for path in once.keys() & {
            *tensors,
            *sizes,
            *skippable,
            *self._calls,
            *self.graph.trace.live,
        }:
            make_dynamic(
                once[path],
                path,
                self._active,
                tensors.get(path, ()),
                sizes.get(path, ()),
                path in skippable,
                path in self._calls,
                path in self.graph.trace.live,
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Supernet:
        """Copies the model; what is known about it does not change and is shared."""
        memo[id(self)] = copied = copy.copy(self)
        copied.model = copy.deepcopy(self.model, memo)
        copied._active = copy.deepcopy(self._active, memo)
        copied.statistics = copy.deepcopy(self.statistics, memo)
        copied._plan = copied._cached_plans()
        return copied

    def _cached_plans(self) -> Callable[[Architecture], SubnetPlan]:
        return functools.lru_cache(maxsize=64)(self._make_plan)

    def _make_static(self) -> None:
        for module in self.model.modules():
            make_static(module)

    def _make_plan(self, architecture: Architecture) -> SubnetPlan:
        plan = self._plan_units(self._units(architecture), self.space.skipped(architecture))
        return replace(plan, statistics=self.statistics.get(architecture, {}))

    def _units(self, architecture: Architecture) -> list[int]:
        units: list[int] = self.space.group_units(self.space.encode(architecture)[None])[0].tolist()
        return units

    def _plan_units(self, units: Sequence[int], skipped: Iterable[str]) -> SubnetPlan:
        return plan_subnet(self.model, self.graph, self._calls, self._aliases, units, skipped)

    def _verify(self) -> dict[str, str]:
        """Kinds of groups and blocks whose narrow forward is not that of the masked trace.

        Where all are right, only modules whose code gave other sizes than the subnet's go on
        being supplied with those.
        """
        verifier = Verifier(self.model, self.graph, self.inputs)
        full = [group.units for group in self.graph.groups]
        halved = self._halved()
        blocks = sorted(self.space.min_depth())

        def reason(units: Sequence[int], skipped: Iterable[str]) -> str:
            return verifier.difference(self._plan_units(units, skipped), units)

        if self.graph.trace.live:
            verifier.check_dense()  # they were traced in another mode than they run in
        together = reason(halved, ()) or (blocks and reason(halved, blocks))
        if not together:
            self._calls = {
                path: calls for path, calls in self._calls.items() if path in verifier.supplied
            }
            return {}
        verifier.check_dense()
        failing = {}
        narrow = [g for g, half in zip(self.graph.groups, halved, strict=True) if half < g.units]
        for kind in sorted({group.kind for group in narrow}):
            units = [
                half if group.kind == kind else group.units
                for group, half in zip(self.graph.groups, halved, strict=True)
            ]
            if found := reason(units, ()):
                failing[kind] = found
        for kind in sorted({kind_of(path) for path in blocks}):
            alike = [path for path in blocks if kind_of(path) == kind]
            if found := reason(full, alike):
                alone = {path: why for path in alike if (why := reason(full, [path]))}
                failing.update(alone or {kind: found})
        if not failing:
            raise SupernetError(
                f'{type(self.model).__name__}: each kind of channels can be narrowed alone, all '
                f'together not: {together}'
            )
        return failing

    def _halved(self) -> list[int]:
        """Half the units of every group that the space narrows."""
        narrowed = {index for stage in self.space.stages for index in stage.groups}
        return [
            (group.units + 1) // 2 if index in narrowed else group.units
            for index, group in enumerate(self.graph.groups)
        ]

    def _other_ways(self, fix_outputs: bool, frozen: Mapping[str, str]) -> str:
        """Follows a larger input as well: its forward may make other calls.

        Windows are shifted where there are several, positions interpolated where they are not
        the trained ones. Returns why subnets do not run there; '' where they do.
        """
        inputs = _larger(self.inputs)
        if inputs is None:
            return 'its input is no image'
        try:
            # of a copy: there are forwards that keep what they worked out for a size
            traced = trace(copy.deepcopy(self.model), inputs)
        except TraceError as error:
            return f'the dense network takes no other size: {error}'
        graph = ChannelGraph.from_trace(self.model, traced, fix_outputs, frozen)
        known = same_groups(self.graph, graph)
        if known is None:
            return (
                f'with inputs of shape {tuple(inputs[0].shape)} its channels are coupled otherwise'
            )
        before = self._calls
        calls = tuple(call.with_groups(known) for call in graph.calls)
        found = sized_calls(self.model, self.graph.calls, calls)
        self._calls = {path: found.get(path, ways) for path, ways in before.items()}
        self._make_dynamic()
        try:
            verifier = Verifier(self.model, graph, inputs)
            halved = self._halved()
            reason = verifier.difference(
                self._plan_units(halved, ()), [halved[group] for group in known]
            )
        finally:
            self._make_static()
        if reason:
            self._calls = before
            return f'with inputs of shape {tuple(inputs[0].shape)} {reason}'
        return ''

    @contextmanager
    def activate(self, architecture: Architecture) -> Iterator[nn.Module]:
        """Inside, the model is the subnet. Nested use and exceptions restore what was before.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
        """
        plan = self._plan(architecture)
        before, self._active.plan = self._active.plan, plan
        try:
            yield self.model
        finally:
            self._active.plan = before

    def compact_plan(self, architecture: Architecture) -> CompactPlan:
        """The description of a subnet as a network of its own."""
        plan = self._plan(architecture)
        tensors = dict(self._tensors())
        return CompactPlan(
            {key: tuple(plan.narrow(key, tensors[key]).shape) for key in plan.tensors},
            {path: dict(sizes) for path, sizes in plan.sizes.items()},
            dict(plan.calls),
            tuple(sorted(plan.skipped)),
            tuple(map(self._stage_shapes, self.space.stages)),
        )

    def _stage_shapes(self, stage: Stage) -> StageShapes:
        """By a tensor that holds nothing but one group of the stage and is never left out.

        It is one in which as few widths as possible round to the same number of channels.
        """
        skippable = tuple(path + '.' for path in self.space.min_depth())
        best = StageShapes(stage.name, stage.runs, '', 0, ())
        for key, dims in self.graph.dims.items():
            for dim, dim_map in dims.items():
                (group, *others) = np.unique(dim_map.group).tolist()
                if key.startswith(skippable) or others or group not in stage.groups:
                    continue
                units = [g.units for g in self.graph.groups]
                widths = []
                for width in stage.widths:
                    units[group] = self.space.units(self.graph.groups[group], width)
                    widths.append((width, len(dim_map.kept(units))))
                if len({size for _, size in widths}) > len({size for _, size in best.widths}):
                    best = StageShapes(stage.name, stage.runs, key, dim, tuple(widths))
        return best

    def export(self, architecture: Architecture) -> nn.Module:
        """The subnet as a static network of its own, with copies of its weights.

        Its output equals that of the active subnet. No dynamic class is left inside.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
        """
        plan = self._plan(architecture)
        network = copy.deepcopy(self.model)
        for module in network.modules():
            make_static(module)
        tensors = {
            key: plan.narrow(key, tensor.detach()).clone(memory_format=torch.contiguous_format)
            for key, tensor in self._tensors()
            if key in plan.tensors
        }
        compact(network, self.compact_plan(architecture), tensors)
        for key, own in plan.statistics.items():
            network.get_buffer(key).copy_(own)
        return network

    def calibrate(
        self,
        architecture: Architecture,
        batches: Iterable[Any],
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> int:
        """Gives a subnet running statistics of its own: those over ``batches``.

        The main network's do not change. The subnet has its own from then on, active and exported.

        Args:
            architecture: The subnet's.
            batches: What ``forward`` takes.
            forward: Runs the subnet on a batch; by default ``network(batch)``.

        Returns:
            How many norm layers have statistics.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
            ValueError: If there are norm layers and not a single batch.
        """
        network = self.export(architecture)
        count = calibrate(network, batches, forward and functools.partial(forward, network))
        self.set_statistics(
            architecture,
            {
                f'{path}.{name}' if path else name: buffer
                for path, norm in norms_with_statistics(network)
                for name, buffer in norm.named_buffers(recurse=False)
            },
        )
        return count

    def set_statistics(self, architecture: Architecture, statistics: dict[str, Tensor]) -> None:
        """Gives a subnet running statistics that were estimated before.

        Raises:
            ArchitectureError: If the architecture is not a member of the space.
        """
        self.space.check(architecture)
        self.statistics[architecture] = statistics
        self._plan = self._cached_plans()

    def pad(self, outputs: Any, architecture: Architecture) -> Any:
        """Outputs of a subnet in the dense model's shapes: zeros where channels were left out.

        Args:
            outputs: What the model returned while the subnet was active.
            architecture: The subnet's.
        """
        units = self._units(architecture)
        leaves, spec = pytree.tree_flatten(outputs)
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for i, dims in zip(tensors, self.graph.outputs, strict=True):
            for dim, dim_map in dims.items():
                selection = Selection(dim, dim_map.kept(units))
                leaves[i] = selection.pad(leaves[i], len(dim_map.group))
        return pytree.tree_unflatten(leaves, spec)

    def order_channels(self, norm: int = 2) -> None:
        """Sorts the channels of every group by importance, so that the first are worth keeping.

        The importance of a channel is the norm of all weights that make or read it (the group norm
        of DepGraph, CVPR 2023), each tensor scaled to mean 1. The main network computes the same
        function as before.

        Args:
            norm: 1 or 2: the sum of magnitudes or of squares.
        """
        tensors = dict(self._tensors())
        weights = {key for key, parameter in self.model.named_parameters() if parameter.dim() > 1}
        scores: list[Tensor | None] = [None] * len(self.graph.groups)
        for key, dims in self.graph.dims.items():
            if key not in weights:
                continue
            magnitudes = tensors[key].detach().double().abs().pow(norm)
            for dim, dim_map in dims.items():
                energy = magnitudes.transpose(0, dim).flatten(1).sum(1)
                group_of = torch.from_numpy(dim_map.group)
                unit_of = torch.from_numpy(dim_map.unit)
                for group in set(dim_map.group.tolist()) - {WHOLE}:
                    here = group_of == group
                    units = self.graph.groups[group].units
                    score = torch.zeros(units, dtype=torch.float64)
                    score.index_add_(0, unit_of[here], energy.cpu()[here])
                    score /= score.mean().clamp_min(torch.finfo(torch.float64).tiny)
                    scores[group] = score if scores[group] is None else scores[group] + score
        orders = [
            None if score is None else torch.argsort(score, descending=True, stable=True)
            for score in scores
        ]
        with torch.no_grad():
            for key, dims in self.graph.dims.items():
                for dim, dim_map in dims.items():
                    index = _reordered(dim_map.group, dim_map.unit, orders)
                    tensor = tensors[key]
                    tensor.copy_(tensor.index_select(dim, index.to(tensor.device)))

    def check_intact(self) -> None:
        """Whether the layers are still those made dynamic.

        Raises:
            SupernetError: Naming the first that was replaced.
        """
        modules = dict(self.model.named_modules())
        for key in self.graph.dims:
            path = key.rpartition('.')[0]
            if not isinstance(modules.get(path), DynamicMixin):
                raise SupernetError(
                    f'{path} was replaced by {type(modules.get(path)).__name__} after the supernet '
                    'was made. Name the layer that you want in the config of the model '
                    "(norm_cfg=dict(type='SyncBN'), with several processes) instead of having it "
                    'converted later'
                )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters(remove_duplicate=False)
        yield from self.model.named_buffers(remove_duplicate=False)


def _reordered(group_of: Any, unit_of: Any, orders: Sequence[Tensor | None]) -> Tensor:
    """Where every position of a dimension gets its content from."""
    index = torch.arange(len(group_of))
    for group, order in enumerate(orders):
        positions = torch.from_numpy((group_of == group).nonzero()[0])
        if order is None or not len(positions):
            continue
        # (units, positions per unit), in the order of the positions within each unit
        by_unit = positions[torch.from_numpy(unit_of)[positions].argsort(stable=True)]
        by_unit = by_unit.reshape(len(order), -1)
        index[by_unit.reshape(-1)] = by_unit[order].reshape(-1)
    return index


def _larger(inputs: Sequence[Tensor]) -> tuple[Tensor] | None:
    """A larger image, not square; None where the input is no image."""
    if len(inputs) != 1 or inputs[0].dim() != 4:
        return None
    height, width = (
        math.ceil(size * factor / 32) * 32
        for size, factor in zip(inputs[0].shape[2:], (1.25, 1.5), strict=True)
    )
    return (inputs[0].new_zeros(*inputs[0].shape[:2], height, width),)


def _like_parameters(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return tuple(inputs)
    return tuple(
        x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)
        for x in inputs
    )


def _refuse(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise SupernetError(
            f'the model is wrapped in {name}: make a supernet of what is inside (model.module), '
            'and wrap it afterwards'
        )
    if isinstance(model, OptimizedModule):
        raise SupernetError(
            'the model is compiled: make a supernet of the module that was given to torch.compile '
            '(model._orig_mod). Exported subnets can be compiled'
        )
    for key, parameter in model.named_parameters():
        if parameter.is_meta:
            raise SupernetError(
                f'{key} is on the meta device and has no values: build the model on a real device, '
                'or move it with to_empty() and initialise it'
            )
    for path, module in model.named_modules():
        if module._compiled_call_impl is not None:
            raise SupernetError(
                f'{path or "the model"} is compiled (Module.compile()): it would stay the dense '
                'one. Leave that out; exported subnets can be compiled'
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise SupernetError(
                f'{path or "the model"} is a TorchScript module, whose layers cannot be narrowed: '
                'build it without torch.jit'
            )
        if isinstance(module, DynamicMixin):
            raise SupernetError(f'{path or "the model"} is part of a supernet already')
        if getattr(module, 'with_cp', False) is True:
            raise SupernetError(
                f'{path or "the model"} ({type(module).__name__}) has with_cp=True: it would be '
                'recomputed in the backward pass, when its subnet is no longer active. '
                'Set with_cp=False'
            )
