"""From a model to what a supernet is made of: traced, analysed, made dynamic and checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from ..analysis.analysis import ChannelGraph, same_groups
from ..analysis.groups import kind_of
from ..analysis.trace import kept_by_forward, trace
from ..analysis.walk import first_keys
from ..errors import SupernetError, TraceError
from ..search.space import SearchSpace
from .attributes import sizes_of
from .check import Verifier
from .modules import ActiveSubnet, DynamicMixin, make_dynamic, make_static
from .plan import SubnetPlan, plan_subnet, sized_calls


class Conversion:
    """A model whose layers have become dynamic, with its analysis and its search space.

    Args:
        model: Any module that `torch.export` can follow; changed in place.
        inputs: An example input or a tuple of them.
        fix_outputs: Keep the channels of the model's outputs whole.
        space: Options of `SearchSpace`.

    Attributes:
        inputs: The example inputs, on the device and in the precision of the parameters.
        graph: The analysis. Groups and blocks that fail the check are fixed in it.
        space: The architectures.
        active: Which subnet the dynamic modules are.
        calls: Sizes that forwards give to operators, by module; see `sized_calls`.
        aliases: Further state-dict keys of shared tensors, and the key each is known by.
        one_size: Why subnets may not run at another size of the input; '' where they do.

    Raises:
        TraceError: If the model cannot be traced.
        SpaceError: If nothing can be pruned, or an option is wrong.
        SupernetError: If the model cannot be run as its subnets.
        VerificationError: If the trace does not compute what the model does.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor | Sequence[Tensor],
        fix_outputs: bool,
        space: Mapping[str, Any],
    ) -> None:
        refuse(model)
        self.model = model
        self.inputs = _like_parameters(
            model, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        )
        traced = trace(model, self.inputs)
        frozen: dict[str, str] = {}
        while True:
            self.graph = ChannelGraph.from_trace(model, traced, fix_outputs, frozen)
            self.space = SearchSpace(self.graph, **space)
            self.calls = sized_calls(model, self.graph.calls)
            self.aliases = {
                key: first
                for key, first in first_keys(model).items()
                if key != first and first in self.graph.dims
            }
            self.active = ActiveSubnet()
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
        self.one_size = self._other_ways(fix_outputs, frozen) if self.calls else ''
        self._make_dynamic()

    def _plan(self, units: Sequence[int], skipped: Iterable[str]) -> SubnetPlan:
        return plan_subnet(self.model, self.graph, self.calls, self.aliases, units, skipped)

    def _make_dynamic(self) -> None:
        tensors: dict[str, set[str]] = {}
        sizes: dict[str, set[str]] = {}
        for key in [*self.graph.dims, *self.aliases]:
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
            *self.calls,
            *self.graph.trace.live,
        }:
            make_dynamic(
                once[path],
                path,
                self.active,
                tensors.get(path, ()),
                sizes.get(path, ()),
                path in skippable,
                path in self.calls,
                path in self.graph.trace.live,
            )

    def _make_static(self) -> None:
        for module in self.model.modules():
            make_static(module)

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
            return verifier.difference(self._plan(units, skipped), units)

        if self.graph.trace.live:
            verifier.check_dense()  # they were traced in another mode than they run in
        together = reason(halved, ()) or (blocks and reason(halved, blocks))
        if not together:
            self.calls = {
                path: calls for path, calls in self.calls.items() if path in verifier.supplied
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
        before = self.calls
        calls = tuple(call.with_groups(known) for call in graph.calls)
        found = sized_calls(self.model, self.graph.calls, calls)
        self.calls = {path: found.get(path, ways) for path, ways in before.items()}
        self._make_dynamic()
        try:
            verifier = Verifier(self.model, graph, inputs)
            halved = self._halved()
            reason = verifier.difference(self._plan(halved, ()), [halved[group] for group in known])
        finally:
            self._make_static()
        if reason:
            self.calls = before
            return f'with inputs of shape {tuple(inputs[0].shape)} {reason}'
        return ''


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


def refuse(model: nn.Module) -> None:
    """Raises for a model that is wrapped, compiled, without values or dynamic already.

    Raises:
        SupernetError: Naming the module and what to do.
    """
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
