"""From a model to what a supernet is made of: traced, analysed, made dynamic and checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..analysis.analysis import ChannelGraph
from ..analysis.eval_state import kept_by_forward
from ..analysis.groups import kind_of
from ..analysis.trace import Trace, trace
from ..errors import SupernetError, TraceError
from ..search.space import SearchSpace
from .attention import forward_of
from .attributes import attributes_of
from .check import Verifier
from .modules import ActiveSubnet, DynamicMixin, make_dynamic
from .plan import plan_subnet
from .refuse import refuse
from .swap import unswap


@dataclass(frozen=True)
class Converted:
    """A model whose layers have become dynamic, with its analysis and its search space.

    Attributes:
        inputs: The example inputs, on the device and in the precision of the parameters.
        graph: The analysis. Groups and blocks that fail the check are fixed in it.
        space: The architectures.
        active: Which subnet the dynamic modules are.
        one_size: Why subnets may not run at another size of the input; None where they do.
    """

    inputs: tuple[Tensor, ...]
    graph: ChannelGraph
    space: SearchSpace
    active: ActiveSubnet
    one_size: str | None


def convert(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    fix_outputs: bool,
    options: Mapping[str, Any],
) -> Converted:
    """Makes the layers of a model dynamic, in place.

    Where Python gives sizes of channels to operators, a larger input is traced too: the forward
    may make other calls there. Windows are shifted where there are several, positions
    interpolated where they are not the trained ones.

    Args:
        model: Any module that `torch.export` can follow.
        inputs: An example input or a tuple of them.
        fix_outputs: Keep the channels of the model's outputs whole.
        options: Of `SearchSpace`.

    Raises:
        TraceError: If the model cannot be traced.
        SpaceError: If nothing can be pruned, or an option is wrong.
        SupernetError: If the model cannot be run as its subnets.
        VerificationError: If the trace does not compute what the model does.
    """
    refuse(model)
    inputs = _like_parameters(model, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs))
    traced, frozen = trace(model, inputs), dict[str, str]()
    while True:
        graph = _analyse(model, [traced], fix_outputs, frozen)
        space = SearchSpace(graph, **options)
        with _dynamic(model, graph, space):
            verifier = Verifier(model, graph, inputs)
            failing = _failing(model, graph, space, verifier)
        if not failing:
            break
        if kept_by_forward(model, inputs):
            traced, frozen = trace(model, inputs), {}
        else:
            frozen.update(failing)
    # modules whose code gives the subnet's own sizes need not be supplied with them
    graph, one_size = _with_ways(graph, verifier.supplied), None
    if graph.ways:
        graph, one_size = _at_larger_size(model, inputs, graph, space, fix_outputs, frozen)
    active = ActiveSubnet()
    _make_dynamic(model, graph, space, active)
    return Converted(inputs, graph, space, active, one_size)


def _analyse(
    model: nn.Module, traces: Sequence[Trace], fix_outputs: bool, frozen: Mapping[str, str]
) -> ChannelGraph:
    own = {path for path, module in model.named_modules() if forward_of(module) is not None}
    return ChannelGraph.from_traces(model, traces, fix_outputs, frozen, own)


def _with_ways(graph: ChannelGraph, paths: Collection[str]) -> ChannelGraph:
    return replace(graph, ways={path: way for path, way in graph.ways.items() if path in paths})


def _at_larger_size(
    model: nn.Module, inputs: Sequence[Tensor], known: ChannelGraph, space: SearchSpace,
    fix_outputs: bool, frozen: Mapping[str, str],
) -> tuple[ChannelGraph, str | None]:  # fmt: skip
    """The analysis with a trace of a larger input beside the first, or why there is none."""
    larger = _larger(inputs)
    if larger is None:
        return known, 'its input is no image'
    where = f'with inputs of shape {tuple(larger[0].shape)}'
    try:
        # of a copy: there are forwards that keep what they worked out for a size
        further = trace(copy.deepcopy(model), larger)
    except TraceError as error:
        return known, f'the dense network takes no other size: {error}'
    graph = _analyse(model, [known.traced[0].trace, further], fix_outputs, frozen)
    if graph.dims != known.dims:
        return known, f'{where} its channels are coupled otherwise'
    graph = _with_ways(graph, known.ways)
    with _dynamic(model, graph, space):
        halved = _halved(graph, space)
        verifier = Verifier(model, graph, larger, traced=1)
        reason = verifier.difference(plan_subnet(model, graph, halved, ()), halved)
    return (graph, None) if reason is None else (known, f'{where} {reason}')


def _make_dynamic(
    model: nn.Module, graph: ChannelGraph, space: SearchSpace, active: ActiveSubnet
) -> None:
    tensors: dict[str, set[str]] = {}
    for key in [*graph.dims, *graph.aliases]:
        path, _, name = key.rpartition('.')
        tensors.setdefault(path, set()).add(name)
    for key, _ in model.named_buffers(remove_duplicate=False):
        # also those that keep their size: a subnet's pass must not write to them
        path, _, name = key.rpartition('.')
        tensors.setdefault(path, set()).add(name)
    skippable, live = space.min_depth(), graph.traced[0].trace.live
    for path, module in model.named_modules():  # a shared module by its first path alone
        if path in tensors or path in skippable or path in graph.ways or path in live:
            make_dynamic(
                module,
                path,
                active,
                tensors=tuple(sorted(tensors.get(path, ()))),
                attributes=tuple(sorted(attributes_of(module))) if path in tensors else (),
                skippable=path in skippable,
                calls=path in graph.ways,
                live=path in live,
            )


@contextmanager
def _dynamic(model: nn.Module, graph: ChannelGraph, space: SearchSpace) -> Iterator[None]:
    """Inside, the model is dynamic, so that copies of it are."""
    _make_dynamic(model, graph, space, ActiveSubnet())
    try:
        yield
    finally:
        for module in model.modules():
            unswap(module, DynamicMixin)


def _failing(
    model: nn.Module, graph: ChannelGraph, space: SearchSpace, verifier: Verifier
) -> dict[str, str]:
    """Kinds of groups and blocks whose narrow forward is not that of the masked trace."""
    full = [group.units for group in graph.groups]
    halved = _halved(graph, space)
    blocks = sorted(space.min_depth())

    def reason(units: Sequence[int], skipped: Sequence[str]) -> str | None:
        return verifier.difference(plan_subnet(model, graph, units, skipped), units)

    if graph.traced[0].trace.live:
        verifier.check_dense()  # they were traced in another mode than they run in
    together = reason(halved, ()) or (reason(halved, blocks) if blocks else None)
    if together is None:
        return {}
    verifier.check_dense()
    failing = {}
    narrow = [g for g, half in zip(graph.groups, halved, strict=True) if half < g.units]
    for kind in sorted({group.kind for group in narrow}):
        units = [
            half if group.kind == kind else group.units
            for group, half in zip(graph.groups, halved, strict=True)
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
            f'{type(model).__name__}: each kind of channels can be narrowed alone, all together '
            f'not: {together}'
        )
    return failing


def _halved(graph: ChannelGraph, space: SearchSpace) -> list[int]:
    """Half the units of every group that the space narrows."""
    narrowed = {index for stage in space.stages for index in stage.groups}
    return [
        (group.units + 1) // 2 if index in narrowed else group.units
        for index, group in enumerate(graph.groups)
    ]


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
