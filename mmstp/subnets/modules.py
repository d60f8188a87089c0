"""Dynamic modules: the static module with a narrower view of its own weights.

A module becomes dynamic by another class (`mmstp.subnets.swap`) whose parameters, buffers and
attributes are properties. While no subnet is active they give what the module has; while one is,
they give the subnet's part. The module's own forward runs in both cases: nothing is wrapped, no key
and no Parameter object changes, and one mechanism serves every layer type.

An exported network keeps that class where its plain modules would not do: with no tensor left to
narrow, and one subnet that is always active.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, fx, nn

from ..analysis.handing_on import hand_on, own_signature
from ..errors import CallError
from ..foreign import has_hooks_before, is_buffer
from .attention import Forward, forward_of, is_supplied
from .attributes import Attribute
from .plan import SubnetPlan, memory_format_of
from .sized_calls import SuppliedSizes, unsupplied
from .swap import FORWARD, Role, Swapped, swap


class ActiveSubnet:
    """Which subnet a model is at the moment; shared by all its dynamic modules.

    ``supplied`` collects the paths of modules whose code gave sizes that were not the subnet's.
    ``buffers`` holds, by state-dict key, what the subnet works its buffers out to while it is
    active: those of the main network do not change.

    A copy, a pickled one too, starts with none active: a copy made inside
    ``with supernet.activate(...)`` would otherwise stay narrow for good.
    """

    def __init__(self) -> None:
        self.plan = None
        self.supplied: set[str] = set()

    @property
    def plan(self) -> SubnetPlan | None:
        """What the model is a part of; None while it is whole."""
        return self._plan

    @plan.setter
    def plan(self, plan: SubnetPlan | None) -> None:
        self._plan = plan
        self.buffers: dict[str, Tensor] = {}

    def __reduce__(self) -> Any:
        return type(self), ()


class FixedSubnet(ActiveSubnet):
    """The subnet that an exported network is."""

    def __init__(self, plan: SubnetPlan) -> None:
        super().__init__()
        self.plan = plan

    def __reduce__(self) -> Any:
        return type(self), (self.plan,)


class DynamicMixin(Swapped):
    """Marks a module that runs as a part of itself."""


@dataclass(frozen=True)
class Dynamic(Role):
    """A module that runs as a part of itself.

    Attributes:
        tensors: Names of the parameters and buffers that get narrower.
        attributes: Names of the attributes that change with them.
        skippable: Whether the module is a block that may be the identity.
        calls: Whether its forward gives operators sizes that change.
        live: Whether it keeps something in eval mode that is wrong for a part of it.
        own: The forward that runs while it is narrow, where the class's cannot.
    """

    tensors: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    skippable: bool = False
    calls: bool = False
    live: bool = False
    own: Forward | None = None

    state: ClassVar[tuple[str, str]] = (
        '_mmstp_subnet',
        '_mmstp_path',
    )  # where a module has its own

    @classmethod
    def named(cls, subnet: ActiveSubnet, path: str) -> dict[str, Any]:
        """The state of a module: which subnet its model is, and its path there."""
        return dict(zip(cls.state, (subnet, path), strict=True))

    @property
    def mixin(self) -> type[Swapped]:
        return DynamicMixin

    def unscriptable(self, module: nn.Module) -> str:
        """Why it cannot be scripted, and what to do."""
        return f'{type(module).__name__} is part of a supernet: script an exported subnet'

    @property
    def has_forward(self) -> bool:
        """Whether its forward is not the class's."""
        return self.skippable or self.calls or self.live or self.own is not None

    def members(self, base: type[nn.Module]) -> dict[str, Any]:
        found: dict[str, Any] = {
            **{name: _narrow_tensor(name, _computes(base)) for name in self.tensors},
            **{name: _narrow_attribute(name) for name in self.attributes},
            '__prepare_scriptable__': functools.partialmethod(_refuse_scripting, self),
        }
        if self.tensors:
            found['__setattr__'] = _set_outside_subnets(frozenset(self.tensors), base)
        if self.has_forward:
            found['forward'] = _forward(base.forward, self)
        return found


def subnet_of(model: nn.Module) -> ActiveSubnet:
    """The state that a model's dynamic modules share."""
    found = (vars(m)['_mmstp_subnet'] for m in model.modules() if isinstance(m, DynamicMixin))
    return next(found, ActiveSubnet())


def _refuse_scripting(module: nn.Module, role: Dynamic) -> None:
    """Called by `torch.jit.script`, which would follow the dense class's code.

    Raises:
        NotImplementedError: With what to do.
    """
    raise NotImplementedError(role.unscriptable(module))


def make_dynamic(module: nn.Module, path: str, subnet: ActiveSubnet, **role: Any) -> None:
    """Turns a module into a dynamic one, in place.

    Args:
        module: Any module.
        path: Its path in the model.
        subnet: The model's state.
        **role: Of `Dynamic`; a registered forward is found.
    """
    made = Dynamic(**role, own=forward_of(module))
    state = own_forward(module) if made.has_forward else {}
    swap(module, made, **Dynamic.named(subnet, path), **state)


def own_forward(module: nn.Module) -> dict[str, Any]:
    """A forward that was set on the module itself, taken away: state for the class's to call."""
    return {FORWARD: vars(module).pop('forward')} if 'forward' in vars(module) else {}


def _forward(base: Callable[..., Any], role: Dynamic) -> Callable[..., Any]:
    """The forward that asks the plan: skipped, with another forward, with other sizes, or as is."""
    subnet_name, path_name = role.state

    @functools.wraps(base)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        dense = vars(self).get(FORWARD) or base.__get__(self)
        subnet, path = vars(self)[subnet_name], vars(self)[path_name]
        plan = subnet.plan
        if plan is None:
            return dense(*args, **kwargs)
        if role.skippable and path in plan.skipped:
            return hand_on(plan.skipped[path], own_signature(dense), args, kwargs)
        if (tracer := _tracer(args, kwargs)) is not None and tracer.root is not self:
            # what its code makes of a proxy's shape is not the subnet's: a leaf for `torch.fx`
            return tracer.create_proxy('call_module', tracer.path_of_module(self), args, kwargs)
        other = role.own is not None and path in plan.narrowed
        run = role.own.__get__(self) if role.own and other else dense
        if not is_supplied(role.own):
            with unsupplied():
                return run(*args, **kwargs)
        training = self.training
        self.training = training or role.live
        try:
            ways = plan.calls.get(path) if role.calls else None
            if ways is None:
                return run(*args, **kwargs)
            with SuppliedSizes(path, ways) as sizes:
                out = run(*args, **kwargs)
            if sizes.changed:
                subnet.supplied.add(path)
            return out
        except CallError as error:
            if has_hooks_before(self):
                raise CallError(
                    f'{error}. It has a forward_pre_hook, and operators that hooks call are not '
                    'supplied with sizes (of torch.nn.utils.spectral_norm: take '
                    'torch.nn.utils.parametrizations.spectral_norm)'
                ) from error
            raise
        finally:
            self.training = training

    return forward


def _tracer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Tracer | None:
    """What traces this call symbolically, where something does."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, fx.Proxy) and isinstance(value.tracer, fx.Tracer):
            return value.tracer
    return None


def _computes(base: type[nn.Module]) -> bool:
    """Whether a forward may do more with its weights than hand them to one operator.

    What it works out of a view (a standardised weight) can differ in the last bits from what it
    works out of the contiguous tensor of the exported module.
    """
    return not base.__module__.startswith('torch.nn.modules.')


def _narrow_tensor(name: str, contiguous: bool) -> property:
    def get(self: Any) -> Tensor | None:
        tensor: Any = nn.Module.__getattr__(self, name)  # where `torch.fx` puts its own
        plan = self._mmstp_subnet.plan
        if plan is None or tensor is None:
            return cast(Tensor, tensor)
        key = _key(self, name)
        if key in plan.norm_statistics:
            return plan.norm_statistics[key]  # which a subnet in training goes on updating
        if key in self._mmstp_subnet.buffers:
            return cast(Tensor, self._mmstp_subnet.buffers[key])
        whole, is_parameter = tensor, isinstance(tensor, nn.Parameter)
        tensor = plan.narrow(key, tensor)
        if contiguous:
            tensor = tensor.contiguous(memory_format=memory_format_of(whole))
        if whole.requires_grad and not tensor.requires_grad:
            # made without gradients; ATen takes other paths for weights that are not trained
            tensor = tensor.detach().requires_grad_()
        if self.training and not is_parameter:
            # they belong to the main network: a subnet in training updates a copy, and reads it
            self._mmstp_subnet.buffers[key] = tensor = tensor.clone()
        return tensor

    return property(get)


def _key(module: Any, name: str) -> str:
    return f'{module._mmstp_path}.{name}' if module._mmstp_path else name


def _set_outside_subnets(names: frozenset[str], base: type[nn.Module]) -> Callable[..., None]:
    """Buffers are the main network's: what a subnet's forward works out is the subnet's.

    One of another size (positions, worked out anew for an image) is assigned.
    """

    def set_(self: Any, name: str, value: Any) -> None:
        if name in names and self._mmstp_subnet.plan is not None and is_buffer(self, name):
            now = getattr(self, name)
            if now is not None and value is not None and now.shape == value.shape:
                self._mmstp_subnet.buffers[_key(self, name)] = value
                return
        base.__setattr__(self, name, value)

    return set_


def _narrow_attribute(name: str) -> property:
    def get(self: Any) -> Attribute:
        plan = self._mmstp_subnet.plan
        own: Attribute = vars(self)[name]
        return own if plan is None else plan.attributes.get(self._mmstp_path, {}).get(name, own)

    def set_(self: Any, value: Attribute) -> None:
        vars(self)[name] = value

    return property(get, set_)
