"""Cutting a subnet out of its dense network: a plain static network with smaller tensors.

A compact network is described by its dense network's config and a `CompactSpec`: the shapes of the
tensors that are smaller, the sized calls and the blocks that are gone. So it can be rebuilt without
tracing anything.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..analysis.blocks import is_within
from ..analysis.eval_state import eval_mode, renew
from ..analysis.handing_on import HandsOn, hand_on, own_signature
from ..analysis.scratch import copied
from ..errors import CompactSpecError
from ..foreign import carry_hooks, own_tensors, set_tensor
from .attention import Forward, forward_of, is_supplied
from .attributes import Attribute, attributes_of, holder
from .compact_spec import CompactSpec
from .modules import Dynamic, DynamicMixin, FixedSubnet, own_forward
from .plan import SubnetPlan, memory_format_of, named_tensors
from .swap import Role, Swapped, swap, unswap


def describe(model: nn.Module, plan: SubnetPlan) -> CompactSpec:
    """What is smaller in a subnet, and which blocks are gone; nothing about its stages.

    Args:
        model: The model of a supernet.
        plan: The subnet's.
    """
    every = dict(model.named_modules(remove_duplicate=False))
    skipped = {every[path] for path in plan.skipped}
    gone = {path for path, module in every.items() if module in skipped}  # by any of its names
    shapes = {
        key: tuple(plan.narrow(key, tensor).shape)
        for key, tensor in named_tensors(model).items()
        if key in plan.tensors and not is_within(key, gone)
    }
    return CompactSpec(shapes, dict(sorted(plan.calls.items())), dict(sorted(plan.skipped.items())))


def cut_out(model: nn.Module, plan: SubnetPlan) -> nn.Module:
    """A subnet as a static network of its own, with copies of its weights.

    Args:
        model: The model of a supernet, in which no subnet is active.
        plan: The subnet's.
    """
    network = copied(model)
    for module in network.modules():
        unswap(module, DynamicMixin)
    spec = describe(model, plan)
    tensors = {
        key: plan.narrow(key, tensor.detach()).clone(memory_format=memory_format_of(tensor))
        for key, tensor in named_tensors(model).items()
        if key in spec.shapes
    }
    compact(network, spec, tensors)
    for key, own in plan.norm_statistics.items():
        network.get_buffer(key).copy_(own)
    return network


def compact(
    model: nn.Module, spec: CompactSpec, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Makes a static dense network compact, in place.

    Args:
        model: The dense network.
        spec: What is smaller.
        tensors: The smaller tensors, by key; without them, each starts as the first part of the
            dense one (an initialisation of the right shape).

    Raises:
        CompactSpecError: If the spec names a module or tensor that the model does not have, or a
            shape that is not within the dense one.
    """
    paths: dict[nn.Module, list[str]] = defaultdict(list)  # a module may be known by several
    for path, module in model.named_modules(remove_duplicate=False):
        paths[module].append(path)
    for path, result in spec.skipped.items():
        block = _module(model, path, path)
        identity = _skipped(block, result)
        for known in paths[block]:
            parent, _, name = known.rpartition('.')
            setattr(model.get_submodule(parent), name, identity)
    shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    narrow: dict[Tensor, Tensor] = {}  # what the dense network shares stays shared
    placed: list[tuple[nn.Module, str, Tensor]] = []
    for key, shape in spec.shapes.items():
        path, _, name = key.rpartition('.')
        module = _module(model, path, key)
        dense = own_tensors(module).get(name)
        if dense is None:
            raise CompactSpecError(f'{type(model).__name__} has no tensor {key!r}')
        if len(shape) != dense.dim() or any(a > b for a, b in zip(shape, dense.shape, strict=True)):
            raise CompactSpecError(
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
        placed.append((module, name, narrow[dense]))
        layer, own = holder(key)
        shapes[layer][own] = shape
    attributes: dict[str, Mapping[str, Attribute]] = {}
    for path, narrowed in shapes.items():
        if found := attributes_of(model.get_submodule(path), narrowed):
            attributes[path] = found
    for module, name, data in placed:
        set_tensor(module, name, data)
    for path, changed in attributes.items():
        for name, value in changed.items():
            setattr(model.get_submodule(path), name, value)
    _supply(model, SubnetPlan(dict.fromkeys(spec.shapes, ()), attributes, spec.calls, {}))
    renew(model)


@dataclass(frozen=True)
class Cut(Dynamic):
    """A module of a compact network that asks its plan, which is always the same."""

    state = ('_mmstp_cut', '_mmstp_path_when_cut')

    @property
    def mixin(self) -> type[Swapped]:
        return Swapped

    def unscriptable(self, module: nn.Module) -> str:
        return (
            f'{type(module).__name__} is given the sizes of a subnet while its Python code runs, '
            'which TorchScript cannot do: use torch.jit.trace, torch.export or ONNX'
        )


@dataclass(frozen=True)
class OtherForward(Role):
    """A module whose forward is another than its class's."""

    forward: Forward

    def members(self, base: type[nn.Module]) -> dict[str, Any]:
        return {'forward': self.forward}


def _supply(model: nn.Module, plan: SubnetPlan) -> None:
    """Has modules run with the sizes of a subnet, or another forward than their class's."""
    subnet = FixedSubnet(plan)
    for path in plan.calls:
        _module(model, path, path)
    for path, module in dict(model.named_modules()).items():
        own = forward_of(module)
        # calls inside such a forward are none of those that are supplied around it
        apart = not is_supplied(own) and any(_is_inside(path, parent) for parent in plan.calls)
        if path in plan.calls or apart:
            cut = Cut(calls=path in plan.calls, own=own)
            swap(module, cut, **Cut.named(subnet, path), **own_forward(module))
        elif own is not None and path in plan.narrowed:
            swap(module, OtherForward(own))


def _is_inside(path: str, parent: str) -> bool:
    return not parent or path.startswith(parent + '.')


class Skipped(nn.Identity):
    """Stands where a block was left out that takes or returns more than one tensor.

    Attributes:
        result: What it returns of what it is called with (`HandsOn`).
        signature: Of the block's forward.
    """

    def __init__(self, result: HandsOn, signature: inspect.Signature) -> None:
        super().__init__()
        self.result, self.signature = result, signature

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Hands on what the block adds to."""
        return hand_on(self.result, self.signature, args, kwargs)


def _skipped(block: nn.Module, result: HandsOn) -> nn.Module:
    """What stands where a block was left out.

    It keeps the block's numbers and names, which the code around it may read, but is no instance of
    its class, whose layers others would look for.
    """
    signature = own_signature(vars(block).get('forward') or type(block).forward.__get__(block))
    alone = all(
        parameter.kind is parameter.POSITIONAL_OR_KEYWORD and result == {'argument': [name]}
        for name, parameter in signature.parameters.items()
    )
    identity = nn.Identity() if alone else Skipped(result, signature)
    for name, value in vars(block).items():
        if not name.startswith('_') and isinstance(value, (bool, int, float, str, tuple)):
            vars(identity).setdefault(name, value)
    vars(identity)['training'] = block.training
    carry_hooks(block, identity)
    return identity


def _module(model: nn.Module, path: str, wanted: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CompactSpecError(f'{type(model).__name__} has no {wanted!r}: {error}') from error


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
