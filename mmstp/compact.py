"""Cutting a subnet out of its dense network: a plain static network with smaller tensors.

A compact network is described by its dense network's config and a `CompactPlan`: the shapes of the
tensors that are smaller, the numbers that layers hold about them and the blocks that are gone. So
it can be rebuilt without tracing anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .architecture import Architecture
from .dynamic import (
    Call,
    Size,
    Skipped,
    forward_of,
    replace_forward,
    supply_sizes,
)
from .modes import eval_mode, renew


class CompactPlanError(ValueError):
    """A compact network's description that does not fit the dense network."""


@dataclass(frozen=True)
class StageShapes:
    """How the depth and the width of a stage are read off the shapes of a network's tensors.

    Attributes:
        name: The stage's.
        runs: Paths of its blocks, run by run; depth ``d`` is the first ``d`` of each.
        tensor: State-dict key of a tensor that is there at any depth; '' where no width is chosen.
        dim: Its dimension of the stage's channels.
        widths: For every fraction of the channels how many of them there are.
    """

    name: str
    runs: tuple[tuple[str, ...], ...]
    tensor: str
    dim: int
    widths: tuple[tuple[float, int], ...]

    @classmethod
    def from_dict(cls, stage: Mapping[str, Any]) -> StageShapes:
        """Reads what `to_dict` writes."""
        return cls(
            stage['name'],
            tuple(map(tuple, stage['runs'])),
            stage['tensor'],
            stage['dim'],
            tuple((width, size) for width, size in stage['widths']),
        )

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers."""
        return {
            'name': self.name,
            'runs': [list(run) for run in self.runs],
            'tensor': self.tensor,
            'dim': self.dim,
            'widths': [list(pair) for pair in self.widths],
        }

    def within(self, start: str) -> StageShapes | None:
        """With paths relative to a submodule; None where nothing of the stage is in it."""
        runs = tuple(
            tuple(path.removeprefix(start) for path in run)
            for run in self.runs
            if run[0].startswith(start)
        )
        inside = self.tensor.startswith(start)
        if not runs and not inside:
            return None
        tensor = self.tensor.removeprefix(start) if inside else ''
        return StageShapes(self.name, runs, tensor, self.dim, self.widths if inside else ())

    def depth(self, shapes: Mapping[str, Sequence[int]]) -> int | None:
        """Blocks that a network with tensors of these shapes has; None where it is no depth."""
        counts = []
        for run in self.runs:
            kept = [any(key.startswith(path + '.') for key in shapes) for path in run]
            if not kept[0] or kept != sorted(kept, reverse=True):
                return None
            counts.append(sum(kept))
        depth = max(counts, default=1)
        agree = all(n == min(depth, len(run)) for n, run in zip(counts, self.runs, strict=True))
        return depth if agree else None

    def width(self, shapes: Mapping[str, Sequence[int]]) -> float | None:
        """The fraction of its channels; None where it is none of the choices."""
        if not self.tensor:
            return 1.0
        shape = shapes.get(self.tensor, ())
        if len(shape) <= self.dim:
            return None
        fitting = [width for width, size in self.widths if size == shape[self.dim]]
        return max(fitting, default=None)


@dataclass(frozen=True)
class CompactPlan:
    """What is smaller in a compact network; plain types only, as it goes into configs.

    Attributes:
        shapes: Shapes of tensors, by state-dict key.
        sizes: Attributes that hold numbers of channels, by module path and name.
        calls: The sizes that the calls of a forward take, by module path, for each way through it.
        skipped: Paths of blocks that are the identity.
        stages: How the architecture is read off a network of this kind.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, Mapping[str, Size]]
    calls: Mapping[str, tuple[tuple[Call, ...], ...]]
    skipped: tuple[str, ...]
    stages: tuple[StageShapes, ...] = ()

    @classmethod
    def from_dict(cls, plan: Mapping[str, Any]) -> CompactPlan:
        """Reads what `to_dict` writes.

        Raises:
            CompactPlanError: If a field is missing or unknown.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        if set(plan) != set(fields):
            raise CompactPlanError(
                f'plan has the fields {sorted(plan)}; expected {", ".join(fields)}, as '
                'tools/export.py writes them'
            )
        return cls(
            {key: tuple(shape) for key, shape in plan['shapes'].items()},
            {
                path: {name: _plain_size(size) for name, size in sizes.items()}
                for path, sizes in plan['sizes'].items()
            },
            {
                path: tuple(tuple(map(Call.from_list, way)) for way in ways)
                for path, ways in plan['calls'].items()
            },
            tuple(plan['skipped']),
            tuple(map(StageShapes.from_dict, plan['stages'])),
        )

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists, strings and whole numbers."""
        return {
            'shapes': {key: list(shape) for key, shape in self.shapes.items()},
            'sizes': {
                path: {n: list(s) if isinstance(s, tuple) else s for n, s in sizes.items()}
                for path, sizes in self.sizes.items()
            },
            'calls': {
                path: [[call.to_list() for call in way] for way in ways]
                for path, ways in self.calls.items()
            },
            'skipped': list(self.skipped),
            'stages': [stage.to_dict() for stage in self.stages],
        }

    def within(self, prefix: str) -> CompactPlan:
        """The part that concerns a submodule, with paths relative to it."""
        start = prefix + '.'

        def inside(mapping: Mapping[str, Any]) -> dict[str, Any]:
            return {
                '' if key == prefix else key.removeprefix(start): value
                for key, value in mapping.items()
                if key == prefix or key.startswith(start)
            }

        skipped = tuple(p.removeprefix(start) for p in self.skipped if p.startswith(start))
        stages = tuple(found for stage in self.stages if (found := stage.within(start)) is not None)
        return CompactPlan(
            inside(self.shapes), inside(self.sizes), inside(self.calls), skipped, stages
        )

    def without(self, keys: Collection[str]) -> CompactPlan:
        """For a network that lacks the modules of these tensors."""
        gone = {key.rpartition('.')[0] for key in keys}

        def rest(mapping: Mapping[str, Any]) -> dict[str, Any]:
            return {path: value for path, value in mapping.items() if path not in gone}

        return dataclasses.replace(
            self,
            shapes={key: shape for key, shape in self.shapes.items() if key not in keys},
            sizes=rest(self.sizes),
            calls=rest(self.calls),
        )

    def architecture(self, shapes: Mapping[str, Sequence[int]]) -> Architecture | None:
        """The architecture of a network of this kind, by the shapes of its tensors.

        Where two widths round to the same channels it is the larger one. None where the shapes
        are no architecture's.
        """
        depths = [stage.depth(shapes) for stage in self.stages]
        widths = [stage.width(shapes) for stage in self.stages]
        if None in depths or None in widths:
            return None
        return Architecture.from_nested((depths, widths))


def compact(
    model: nn.Module, plan: CompactPlan, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Makes a static dense network compact, in place.

    Args:
        model: The dense network.
        plan: What is smaller.
        tensors: The smaller tensors, by key; without them, each starts as the first part of the
            dense one (an initialisation of the right shape).

    Raises:
        CompactPlanError: If the plan names a module or tensor that the model does not have, or a
            shape that is not within the dense one.
    """
    for path in plan.skipped:
        parent = _module(model, path.rpartition('.')[0], path)
        setattr(parent, path.rpartition('.')[2], Skipped(_module(model, path, path)))
    narrow: dict[Tensor, Tensor] = {}  # what the dense network shares stays shared
    for key, shape in plan.shapes.items():
        if any(key.startswith(path + '.') for path in plan.skipped):
            continue
        path, _, name = key.rpartition('.')
        module = _module(model, path, key)
        store: dict[str, Any] = (
            module._parameters if name in module._parameters else module._buffers
        )
        if store.get(name) is None:
            raise CompactPlanError(f'{type(model).__name__} has no tensor {key!r}')
        dense = store[name]
        if len(shape) != dense.dim() or any(a > b for a, b in zip(shape, dense.shape, strict=True)):
            raise CompactPlanError(
                f'{key}: shape {shape} is not within the dense {tuple(dense.shape)}'
            )
        if dense not in narrow:
            if tensors is not None:
                data = tensors[key]
            else:
                data = dense.detach()[tuple(slice(size) for size in shape)].clone()
            if isinstance(dense, nn.Parameter):
                data = nn.Parameter(data, requires_grad=dense.requires_grad)
            narrow[dense] = data
        store[name] = narrow[dense]
    for path, sizes in plan.sizes.items():
        if any(path == p or path.startswith(p + '.') for p in plan.skipped):
            continue
        module = _module(model, path, f'{path}.{next(iter(sizes))}')
        for name, size in sizes.items():
            setattr(module, name, size)
    for path, module in model.named_modules():
        if (forward := forward_of(module)) is not None:
            replace_forward(module, forward if path in plan.sizes else type(module).forward)
    for path, ways in plan.calls.items():
        supply_sizes(_module(model, path, path), path, ways)
    renew(model)


def _plain_size(size: Any) -> Size:
    return tuple(size) if isinstance(size, (list, tuple)) else size


def _module(model: nn.Module, path: str, wanted: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CompactPlanError(f'{type(model).__name__} has no {wanted!r}: {error}') from error


def count_parameters(model: nn.Module) -> int:
    """Parameters of a network, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-adds of one forward, by `torch.utils.flop_counter`: a second, independent count."""
    from torch.utils.flop_counter import FlopCounterMode

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know its operator, ...
    try:
        for parameter in trained:  # nor what a parameter that is an input would be traced for
            parameter.requires_grad = False
        # ... nor that of the fused attention on the CPU
        counter = FlopCounterMode(display=False)
        with eval_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trained:
            parameter.requires_grad = True
    return int(counter.get_total_flops()) // 2
