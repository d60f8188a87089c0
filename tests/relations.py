"""What holds for every network and all its architectures: two ways to one number, written once.

`tests/test_networks.py` runs the list (`RELATIONS`) over all networks. Tests with networks of their
own take from it what they need.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mmstp import Architecture, CompactSpec, SearchSpace, Supernet
from mmstp.analysis.eval_state import eval_mode
from mmstp.subnets.check import Verifier
from mmstp.subnets.cut import compact, count_macs, count_parameters
from mmstp.subnets.modules import DynamicMixin
from mmstp.subnets.plan import Selection
from tests.networks import equal, tensors

# --- what they are tried on -----------------------------------------------------------------------


@dataclass(eq=False)
class Case:
    """A network with inputs and architectures.

    Attributes:
        supernet: The network's.
        inputs: Tensors, or tuples of them; of several batches and sizes.
        architectures: Members of its space; by default the smallest.
        make_dense: Makes the static network anew; where it is missing, the export of the largest
            architecture stands for it.
    """

    supernet: Supernet
    inputs: Sequence[Any]
    architectures: Sequence[Architecture] = ()
    make_dense: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        self.architectures = self.architectures or [self.supernet.space.smallest]

    @functools.cached_property
    def exports(self) -> list[tuple[Architecture, nn.Module]]:
        """The architectures with their exports, which no relation changes."""
        return [(one, self.supernet.export(one)) for one in self.architectures]

    def dense(self) -> nn.Module:
        """The static network."""
        if self.make_dense is not None:
            return self.make_dense()
        return self.supernet.export(self.supernet.space.largest)

    def narrow(self, architecture: Architecture, x: Any) -> Any:
        """What the model returns while a subnet is active."""
        with self.supernet.activate(architecture):
            return run(self.supernet.model, x)

    def double(self) -> Case:
        """A copy in float64, for what depends on the order of summation."""
        supernet = copy.deepcopy(self.supernet)
        supernet.model.double()
        for module in supernet.model.modules():  # what code makes in float32 meets float64 weights
            module.register_forward_pre_hook(lambda module, args: in_double(args))
        return Case(supernet, in_double(self.inputs), self.architectures)


def some(space: SearchSpace, count: int = 2, seed: int = 0) -> list[Architecture]:
    """The smallest architecture and others at random."""
    rng = random.Random(seed)
    return [space.smallest, *(space.sample(rng) for _ in range(count))]


def run(network: nn.Module, x: Any) -> Any:
    return network(*x) if isinstance(x, tuple) else network(x)


def in_double(values: Any) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda x: x.double() if x.is_floating_point() else x, values
    )


def kept(supernet: Supernet, architecture: Architecture) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Units of every group, and the blocks that are gone: two architectures may round to one."""
    return tuple(supernet._units(architecture)), supernet.space.skipped(architecture)


def shapes(x: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors(x)]


def assert_same_state(network: nn.Module, other: nn.Module) -> None:
    found, expected = network.state_dict(), other.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def assert_same_modules(network: nn.Module, other: nn.Module) -> None:
    pairs = zip(network.named_modules(), other.named_modules(), strict=True)
    assert all((p, type(m)) == (q, type(n)) for (p, m), (q, n) in pairs)


def through_json(spec: CompactSpec) -> CompactSpec:
    return CompactSpec.from_dict(json.loads(json.dumps(spec.to_dict())))


# --- the dense network ----------------------------------------------------------------------------


def wrapping_leaves_keys_and_weights(case: Case) -> None:
    """The supernet's model has the state of the dense network, in its order."""
    assert_same_state(case.supernet.model, case.dense())


@torch.no_grad()
def largest_is_the_dense_network(case: Case) -> None:
    """To the bit: with no subnet active, with the largest active, and the largest exported."""
    dense, largest = case.dense(), case.supernet.space.largest
    export = case.supernet.export(largest)
    assert_same_modules(export, dense)
    assert_same_state(export, dense)
    for x in case.inputs:
        expected = run(dense, x)
        assert equal(run(case.supernet.model, x), expected), shapes(x)
        assert equal(case.narrow(largest, x), expected), shapes(x)
        assert equal(run(export, x), expected), shapes(x)


# --- its subnets ----------------------------------------------------------------------------------


@torch.no_grad()
def subnet_equals_its_export(case: Case) -> None:
    """To the bit; and it is not the dense network, unless its widths round to all channels."""
    whole = kept(case.supernet, case.supernet.space.largest)
    for x in case.inputs:
        dense = run(case.supernet.model, x)
        for architecture, network in case.exports:
            narrow = case.narrow(architecture, x)
            assert equal(narrow, run(network, x)), (architecture, shapes(x))
            all_stays = kept(case.supernet, architecture) == whole
            assert equal(narrow, dense) == all_stays, (architecture, shapes(x))


@torch.no_grad()
def subnet_agrees_with_its_export(case: Case) -> None:
    """In float64: where an operator adds up what is narrow in another order."""
    case = case.double()
    for x in case.inputs:
        for architecture, network in case.exports:
            narrow, static = tensors(case.narrow(architecture, x)), tensors(run(network, x))
            torch.testing.assert_close(narrow, static)


def slicing_equals_masking(case: Case) -> None:
    """The trace of the dense network with what is dropped at zero; norms see what is kept."""
    supernet, space = case.supernet, case.supernet.space
    verifier = Verifier(supernet.model, supernet.graph, supernet.inputs)
    for architecture in case.architectures:
        units = space.group_units(space.encode(architecture)[None])[0]
        assert verifier.difference(supernet._plan(architecture), units) is None, architecture


@torch.no_grad()
def every_choice_matters(case: Case) -> None:
    """One depth or one width as low as it gets changes the output, each in its own way."""
    space = case.supernet.space

    def joined(architecture: Architecture) -> Tensor:
        found = tensors(case.narrow(architecture, case.supernet.inputs))
        return torch.cat([output.flatten() for output in found])

    outputs = [joined(space.largest)]
    for place, choices in enumerate(space.sizes):
        if choices > 1:
            row = space.encode(space.largest)
            row[place] = 0
            outputs.append(joined(space.decode(row)))
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).abs().max() > 1e-3 * one.abs().max()


@torch.no_grad()
def least_depth_is_the_dense_network_without_those_blocks(case: Case) -> None:
    """With their forwards replaced by hand."""
    space, dense = case.supernet.space, case.dense()
    row = space.encode(space.largest)
    row[: len(space.stages)] = 0
    architecture = space.decode(row)
    for path in space.skipped(architecture):
        dense.get_submodule(path).forward = lambda x, *others, **options: x
    for x in case.inputs:
        assert equal(case.narrow(architecture, x), run(dense, x)), shapes(x)


def gradient_is_that_of_the_export(case: Case) -> None:
    """At the positions that are kept; elsewhere it is exactly zero, and of blocks left out none.

    In the mode that the model is in, of the last architecture.
    """
    case = replace(case, architectures=case.architectures[-1:]).double()
    supernet, x, ((architecture, network),) = case.supernet, case.inputs[0], case.exports
    plan = supernet._plan(architecture)
    with supernet.activate(architecture):
        dynamic = gradients(supernet.model, x)
    modules = dict(network.named_modules())
    live = [modules[path] for path in supernet.graph.traced[0].trace.live if path in modules]
    # in eval mode they would keep constants
    with nullcontext() if network.training else eval_mode(network, live):
        static = gradients(network, x)
    assert set(static) <= set(dynamic)
    outside = 0
    for key, gradient in dynamic.items():
        if key not in static:
            assert key.startswith(tuple(f'{path}.' for path in plan.skipped)), key
            assert gradient is None, key
            outside += 1
        elif gradient is None:
            assert static[key] is None, key
        else:
            inside, rest = parted(gradient, plan.tensors.get(key, ()))
            torch.testing.assert_close(inside, static[key], msg=lambda text, k=key: f'{k}: {text}')
            assert not rest.any(), key
            outside += gradient.numel() - inside.numel()
    assert outside > 0


def gradients(model: nn.Module, x: Any) -> dict[str, Tensor | None]:
    """Those of all parameters; the model is left without."""
    sum(output.square().mean() for output in tensors(run(model, x))).backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def parted(tensor: Tensor, selections: Iterable[Selection]) -> tuple[Tensor, Tensor]:
    """What lies at the positions that are kept, and the tensor with zeros there."""
    positions = [np.arange(size) for size in tensor.shape]
    for selection in selections:
        positions[selection.dim] = selection.positions
    index = tuple(map(torch.from_numpy, np.ix_(*positions)))
    rest = tensor.clone()
    rest[index] = 0
    return tensor[index], rest


# --- its exports ----------------------------------------------------------------------------------


def export_is_static_and_holds_copies(case: Case) -> None:
    """No dynamic class, and no memory that it shares with the supernet's parameters."""
    shared = {t.untyped_storage().data_ptr() for t in case.supernet.model.parameters()}
    for architecture, network in case.exports:
        assert not any(isinstance(module, DynamicMixin) for module in network.modules())
        assert all(t.untyped_storage().data_ptr() not in shared for t in network.parameters()), (
            architecture
        )


def attributes_of_the_export_are_its_weights_shapes(case: Case) -> None:
    """Of convolutions, linear layers and norms."""
    for _, network in case.exports:
        for path, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                said = (module.out_channels, module.in_channels // module.groups)
                assert said == module.weight.shape[:2], path
            elif isinstance(module, nn.Linear):
                assert (module.out_features, module.in_features) == module.weight.shape, path
            elif isinstance(module, _BatchNorm):
                assert module.num_features == len(module.weight) == len(module.running_mean), path
            elif isinstance(module, nn.LayerNorm):
                assert module.normalized_shape == module.weight.shape, path
            elif isinstance(module, nn.GroupNorm):
                assert module.num_channels == len(module.weight), path
                assert module.num_channels % module.num_groups == 0, path


@torch.no_grad()
def rebuilt_from_its_spec_it_equals_the_export(case: Case) -> None:
    """The dense network anew, the spec as text, the weights: what an exported config holds."""
    for architecture, export in case.exports:
        spec = case.supernet.compact_spec(architecture)
        read = through_json(spec)
        assert read == spec
        network = case.dense()
        compact(network, read)
        load(network, export.state_dict())
        assert_same_state(network, export)
        for x in case.inputs:
            assert equal(run(network, x), run(export, x)), (architecture, shapes(x))
        assert_same_modules(network, export)


def load(network: nn.Module, state: dict[str, Tensor]) -> None:
    """All of it, but for buffers that a network leaves out when it loads, as Swin V2 its tables."""
    left = network.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {key for key, _ in network.named_buffers()}
    network.train(), network.eval()  # some keep in eval mode what their weights gave


def costs_are_those_of_the_export(case: Case) -> None:
    """The table, counters that run it, and a count of its parameters; each subnet has its own."""
    supernet = case.supernet
    subnets = [*case.exports, (supernet.space.largest, case.dense())]
    architectures = [architecture for architecture, _ in subnets]
    macs = [counted(network, *supernet.inputs) for _, network in subnets]
    params = [sum(p.numel() for p in network.parameters()) for _, network in subnets]
    activations = [written(network, *supernet.inputs) for _, network in subnets]
    assert supernet.cost.macs(architectures).tolist() == macs
    assert supernet.cost.activations(architectures).tolist() == activations
    assert supernet.cost.params(architectures).tolist() == params
    assert [count_parameters(network) for _, network in subnets] == params
    assert count_macs(subnets[0][1], supernet.inputs) == macs[0]
    different = {kept(supernet, architecture) for architecture in architectures}
    assert len(set(macs)) == len(set(params)) == len(different) > 1


def counted(network: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one forward, by running it with operators that the counter knows."""
    return run_with(FlopCounterMode(display=False), network, inputs) // 2


def written(network: nn.Module, *inputs: Tensor) -> int:
    """Elements of the results of the same operators."""

    def elements(*args: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
        return math.prod(out_shape)

    mapping = dict.fromkeys(flop_registry, elements)
    return run_with(FlopCounterMode(display=False, custom_mapping=mapping), network, inputs)


def run_with(counter: FlopCounterMode, network: nn.Module, inputs: Sequence[Tensor]) -> int:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            network(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def architecture_is_read_off_shapes(case: Case) -> None:
    """Of any network of the space, by the spec of another; where no two widths are one."""
    supernet = case.supernet
    spec = through_json(supernet.compact_spec(case.architectures[-1]))
    largest = supernet.space.largest
    for architecture, network in (*case.exports, (largest, supernet.export(largest))):
        state = network.state_dict()
        found = spec.architecture({key: tuple(tensor.shape) for key, tensor in state.items()})
        assert found is not None, architecture
        assert found.contains(architecture)
        assert found.depths == architecture.depths
        for stage, width, own in zip(spec.stages, found.widths, architecture.widths, strict=True):
            channels = dict(stage.widths)
            assert not channels or channels[width] == channels[own]


# --- its space ------------------------------------------------------------------------------------


def rows_are_architectures(case: Case) -> None:
    """Rows of choices, architectures, their text and the enumeration name the same members."""
    space, rng = case.supernet.space, random.Random(0)
    rows = [[rng.randrange(n) for n in space.sizes] for _ in range(50)]
    for row in rows:
        architecture = space.decode(row)
        space.check(architecture)
        assert space.encode(architecture).tolist() == row
        assert Architecture.parse(str(architecture)) == architecture
    assert len({space.decode(row) for row in rows}) == len({tuple(row) for row in rows})
    if space.size < 20_000:
        every = list(space.enumerate())
        assert len(set(every)) == space.size
        assert every == [space.decode(row) for row in space.all_rows()]
        assert every[0] == space.smallest
        assert every[-1] == space.largest


def support_contains_its_target(case: Case) -> None:
    """And is a member; the largest can only stay."""
    space, rng = case.supernet.space, random.Random(0)
    for _ in range(100):
        target = space.sample(rng)
        support = space.expand(target, rng)
        space.check(support)
        assert support.contains(target)
        assert space.largest.contains(support)
    assert space.expand(space.largest, rng) == space.largest


def larger_architectures_keep_what_smaller_ones_keep(case: Case) -> None:
    """Units of every group, at least one, and blocks."""
    space, rng = case.supernet.space, random.Random(0)
    for _ in range(20):
        target = space.sample(rng)
        support = space.expand(target, rng)
        units = space.group_units(np.stack([space.encode(target), space.encode(support)]))
        assert (units[0] <= units[1]).all()
        assert (units[0] >= 1).all()
        assert set(space.skipped(support)) <= set(space.skipped(target))


def stages_follow_the_forward(case: Case) -> None:
    """Their names tell them apart; their blocks run one stage after the other."""
    supernet = case.supernet
    stages = supernet.space.stages
    assert len({stage.name for stage in stages}) == len(stages)
    place = {
        path: (chain.order, i)
        for chain in supernet.graph.chains
        for i, path in enumerate(chain.paths)
    }
    starts = [min(place[part[0]] for part in stage.chains) for stage in stages if stage.chains]
    assert starts == sorted(starts)


RELATIONS = (
    wrapping_leaves_keys_and_weights,
    largest_is_the_dense_network,
    subnet_equals_its_export,
    slicing_equals_masking,
    every_choice_matters,
    least_depth_is_the_dense_network_without_those_blocks,
    gradient_is_that_of_the_export,
    export_is_static_and_holds_copies,
    attributes_of_the_export_are_its_weights_shapes,
    rebuilt_from_its_spec_it_equals_the_export,
    costs_are_those_of_the_export,
    architecture_is_read_off_shapes,
    rows_are_architectures,
    support_contains_its_target,
    larger_architectures_keep_what_smaller_ones_keep,
    stages_follow_the_forward,
)
