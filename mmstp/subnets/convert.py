"""From a model to what a supernet is made of: traced, analysed, made dynamic and checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..analysis.analysis import ChannelGraph
from ..analysis.eval_state import kept_by_forward
from ..analysis.inputs import arguments
from ..analysis.scratch import copied
from ..analysis.trace import Trace, trace
from ..errors import TraceError
from ..foreign import empty_buffers
from ..search.space import SearchSpace
from .attention import forward_of, is_supplied
from .attributes import attributes_of, holder
from .check import Verifier
from .failing import Failing, any_difference, find_failing, halved
from .modules import ActiveSubnet, DynamicMixin, make_dynamic
from .plan import plan_subnet
from .refuse import refuse
from .swap import unswap

NO_IMAGE = 'its input is no image'
NO_OTHER_SIZE = 'the dense network takes no other size'


@dataclass(frozen=True)
class Converted:
    """A model whose layers have become dynamic, with its analysis and its search space.

    Attributes:
        inputs: The positional arguments, on the device and in the precision of the parameters.
        graph: The analysis. Groups and blocks that fail the check are fixed in it.
        space: The architectures.
        active: Which subnet the dynamic modules are.
        one_size: Why subnets may not run at another size of the input; None where they do.
        one_batch: Why they may not run on another batch; None where they do.
    """

    inputs: tuple[Any, ...]
    graph: ChannelGraph
    space: SearchSpace
    active: ActiveSubnet
    one_size: str | None
    one_batch: str | None


def convert(
    model: nn.Module, inputs: Any, fix_outputs: bool, options: Mapping[str, Any]
) -> Converted:
    """Makes the layers of a model dynamic, in place.

    Where Python gives sizes of channels to operators, a larger input is traced too: the forward
    may make other calls there. Windows are shifted where there are several, positions
    interpolated where they are not the trained ones.

    Args:
        model: Any module that `torch.export` can follow.
        inputs: What it is called with; see `mmstp.analysis.inputs.arguments`.
        fix_outputs: Keep the channels of the model's outputs whole.
        options: Of `SearchSpace`.

    Raises:
        FieldError: If the inputs are not what a model is called with.
        TraceError: If the model cannot be traced.
        SpaceError: If nothing can be pruned, or an option is wrong.
        SupernetError: If the model cannot be run as its subnets.
        VerificationError: If the trace does not compute what the model does.
    """
    refuse(model)
    inputs = arguments(model, inputs)
    tried, fixed = _filled(model, inputs), Failing()
    traced = trace(tried, inputs)
    while True:
        graph = _analyse(tried, [traced], fix_outputs, fixed)
        space = SearchSpace(graph, **options)
        with _dynamic(tried, graph, space):
            verifier = Verifier(tried, graph, inputs)
            failing = find_failing(tried, graph, space, verifier)
        if not failing:
            break
        warm = copied(tried)
        if tried is model and kept_by_forward(warm, inputs):
            # what its forward keeps for the next one is there before a subnet runs
            tried, fixed = warm, Failing()
            traced = trace(tried, inputs)
        else:
            fixed.update(failing)
    # modules whose code gives the subnet's own sizes need not be supplied with them
    graph, one_size = _without_needless_ways(tried, graph, space, inputs, verifier), None
    if graph.ways:
        graph, one_size = _at_larger_size(tried, inputs, graph, space, fix_outputs, fixed)
    if tried is not model:
        kept_by_forward(model, inputs)
    active = ActiveSubnet()
    _make_dynamic(model, graph, space, active)
    return Converted(inputs, graph, space, active, one_size, verifier.one_batch)


def _filled(model: nn.Module, inputs: Sequence[Any]) -> nn.Module:
    """The model; a copy that has run once, where a forward fills buffers that hold nothing yet."""
    if not empty_buffers(model):
        return model
    warm = copied(model)
    kept_by_forward(warm, inputs)
    return model if empty_buffers(warm) == empty_buffers(model) else warm


def _analyse(
    model: nn.Module, traces: Sequence[Trace], fix_outputs: bool, fixed: Failing
) -> ChannelGraph:
    forwards = {path: forward_of(module) for path, module in model.named_modules()}
    own = {path for path, forward in forwards.items() if not is_supplied(forward)}
    return ChannelGraph.from_traces(model, traces, fix_outputs, fixed.groups, fixed.blocks, own)


def _with_ways(graph: ChannelGraph, paths: Collection[str]) -> ChannelGraph:
    return replace(graph, ways={path: way for path, way in graph.ways.items() if path in paths})


def _without_needless_ways(
    model: nn.Module, graph: ChannelGraph, space: SearchSpace, inputs: Sequence[Any],
    checked: Verifier,
) -> ChannelGraph:  # fmt: skip
    """Without the ways of modules that gave the subnet's own sizes, if it still passes then."""
    fewer = _with_ways(graph, checked.supplied)
    if fewer.ways.keys() == graph.ways.keys():
        return graph
    with _dynamic(model, fewer, space):
        verifier = Verifier(model, fewer, inputs)
        reason = any_difference(model, fewer, space, verifier, again=True)
    return fewer if reason is None else graph


def _at_larger_size(
    model: nn.Module, inputs: Sequence[Any], known: ChannelGraph, space: SearchSpace,
    fix_outputs: bool, fixed: Failing,
) -> tuple[ChannelGraph, str | None]:  # fmt: skip
    """The analysis with a trace of a larger input beside the first, or why there is none."""
    larger = _larger(inputs)
    if larger is None:
        return known, NO_IMAGE
    where = f'with inputs of shape {tuple(larger[0].shape)}'
    try:
        further = trace(model, larger)
    except TraceError as error:
        return known, f'{NO_OTHER_SIZE}: {error}'
    graph = _analyse(model, [known.traced[0].trace, further], fix_outputs, fixed)
    if graph.dims != known.dims:
        return known, f'{where} its channels are coupled otherwise'
    graph = _with_ways(graph, known.ways)
    with _dynamic(model, graph, space):
        units = halved(graph, space)
        verifier = Verifier(model, graph, larger, traced=1)
        reason = verifier.difference(plan_subnet(model, graph, units, ()), units)
    return (graph, None) if reason is None else (known, f'{where} {reason}')


def _make_dynamic(
    model: nn.Module, graph: ChannelGraph, space: SearchSpace, active: ActiveSubnet
) -> None:
    tensors: dict[str, set[str]] = {}
    buffers = (key for key, _ in model.named_buffers(remove_duplicate=False))
    # buffers also where they keep their size: a subnet's pass must not write to them
    for key in (*graph.dims, *graph.aliases, *buffers):
        path, _, name = key.rpartition('.')
        tensors.setdefault(path, set()).add(name)
    layers = {holder(key)[0] for key in (*graph.dims, *graph.aliases)}
    skippable, live = space.min_depth(), graph.traced[0].trace.live
    for path, module in model.named_modules():  # a shared module by its first path alone
        needed = any(path in paths for paths in (tensors, layers, skippable, graph.ways, live))
        if needed or forward_of(module) is not None:
            make_dynamic(
                module,
                path,
                active,
                tensors=tuple(sorted(tensors.get(path, ()))),
                attributes=tuple(sorted(attributes_of(module))) if path in layers else (),
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


def _larger(inputs: Sequence[Any]) -> tuple[Tensor] | None:
    """A larger image, not square; None where the input is no image."""
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dim() != 4:
        return None
    height, width = (
        math.ceil(size * factor / 32) * 32
        for size, factor in zip(inputs[0].shape[2:], (1.25, 1.5), strict=True)
    )
    return (inputs[0].new_zeros(*inputs[0].shape[:2], height, width),)
