"""Dynamic modules: the static module with a narrower view of its own weights.

A module becomes dynamic by swapping its class for a subclass whose parameters, buffers and sizes
are properties. While no subnet is active they give what the module has; while one is, they give the
subnet's part. The module's own forward runs in both cases: nothing is wrapped, no key and no
Parameter object changes, and one mechanism serves every layer type.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from .attention import Forward, first_argument, forward_of
from .attributes import Size
from .plan import SubnetPlan
from .sized_calls import SuppliedSizes, unsupplied


class ActiveSubnet:
    """Which subnet a model is at the moment; shared by all its dynamic modules.

    ``supplied`` collects the paths of modules whose code gave sizes that were not the subnet's.

    A deep copy starts with none active: a copy made inside ``with supernet.activate(...)`` would
    otherwise stay narrow for good.
    """

    def __init__(self) -> None:
        self.plan: SubnetPlan | None = None
        self.supplied: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> ActiveSubnet:
        memo[id(self)] = copied = ActiveSubnet()
        return copied


class DynamicMixin:
    """Marks a class that replaces a module's own while it is dynamic.

    Attributes:
        static_class: The class that it replaces.
        added: Names of the attributes that its instances have in addition.
    """

    static_class: ClassVar[Any]
    added: ClassVar[tuple[str, ...]]
    _subnet: ActiveSubnet
    _path: str


def make_dynamic(
    module: nn.Module,
    path: str,
    subnet: ActiveSubnet,
    tensors: Iterable[str] = (),
    sizes: Iterable[str] = (),
    skippable: bool = False,
    calls: bool = False,
    live: bool = False,
) -> None:
    """Turns a module into a dynamic one, in place.

    Args:
        module: Any module.
        path: Its path in the model.
        subnet: The model's state.
        tensors: Names of the parameters and buffers that get narrower.
        sizes: Names of the integer attributes that change with them.
        skippable: Whether the module is a block that may be the identity.
        calls: Whether its forward gives operators sizes that change.
        live: Whether it keeps something in eval mode that is wrong for a part of it.
    """
    base: Any = type(module)
    own = forward_of(module)
    cls = _dynamic_class(
        base, tuple(sorted(tensors)), tuple(sorted(sizes)), skippable, calls, live, own
    )
    vars(module)['_subnet'] = subnet
    vars(module)['_path'] = path
    module.__class__ = cls


def make_static(module: nn.Module) -> None:
    """Gives a dynamic module its own class back; does nothing to a static one."""
    while isinstance(module, DynamicMixin):
        for name in module.added:
            del vars(module)[name]
        module.__class__ = module.static_class


@functools.cache
def _dynamic_class(
    base: type[nn.Module],
    tensors: tuple[str, ...],
    sizes: tuple[str, ...],
    skippable: bool,
    calls: bool,
    live: bool,
    own: Forward | None,
) -> type[nn.Module]:
    members: dict[str, Any] = {
        **{name: _narrow_tensor(name, _computes(base)) for name in tensors},
        **{name: _narrow_size(name) for name in sizes},
        'static_class': base,
        'added': ('_subnet', '_path'),
        '__module__': __name__,
        '__doc__': f'{base.__name__} of which a subnet may use a part.',
    }
    forward = base.forward
    if own is not None:
        forward = _forward_when_narrow(forward, own)
    if calls:
        forward = _supplied_forward(forward)
    if live:
        forward = _live_forward(forward)
    if skippable:
        forward = _skippable_forward(forward)
    if forward is not base.forward:
        members['forward'] = forward
    return type(f'Dynamic{base.__name__}', (DynamicMixin, base), members)


def _computes(base: type[nn.Module]) -> bool:
    """Whether a forward may do more with its weights than hand them to one operator.

    What it works out of a view (a standardised weight) can differ in the last bits from what it
    works out of the contiguous tensor of the exported module.
    """
    return not base.__module__.startswith('torch.nn.modules.')


def _narrow_tensor(name: str, contiguous: bool) -> property:
    def get(self: Any) -> Tensor | None:
        is_buffer = name in self._buffers
        tensor = (self._buffers if is_buffer else self._parameters)[name]
        plan = self._subnet.plan
        if plan is None or tensor is None:
            return tensor
        key = f'{self._path}.{name}' if self._path else name
        if key in plan.statistics:
            return plan.statistics[key]  # which a subnet in training goes on updating
        whole = tensor
        tensor = plan.narrow(key, tensor)
        if contiguous:
            tensor = tensor.contiguous()
        if whole.requires_grad and not tensor.requires_grad:
            # made without gradients; ATen takes other paths for weights that are not trained
            tensor = tensor.detach().requires_grad_()
        # running statistics belong to the main network: a subnet in training updates a copy
        return tensor.clone() if is_buffer and self.training else tensor

    return property(get)


def _narrow_size(name: str) -> property:
    def get(self: Any) -> Size:
        plan = self._subnet.plan
        own: Size = vars(self)[name]
        return own if plan is None else plan.sizes.get(self._path, {}).get(name, own)

    def set_(self: Any, value: Size) -> None:
        vars(self)[name] = value

    return property(get, set_)


def _skippable_forward(base: Forward) -> Forward:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._subnet.plan
        if plan is not None and self._path in plan.skipped:
            return first_argument(args, kwargs)
        return base(self, *args, **kwargs)

    return forward


def _supplied_forward(base: Forward) -> Forward:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._subnet.plan
        ways = None if plan is None else plan.calls.get(self._path)
        if ways is None:
            return base(self, *args, **kwargs)
        with SuppliedSizes(self._path, ways) as sizes:
            out = base(self, *args, **kwargs)
        if sizes.changed:
            self._subnet.supplied.add(self._path)
        return out

    return forward


def _live_forward(base: Forward) -> Forward:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._subnet.plan is None:
            return base(self, *args, **kwargs)
        training, self.training = self.training, True
        try:
            return base(self, *args, **kwargs)
        finally:
            self.training = training

    return forward


def _forward_when_narrow(base: Forward, own: Forward) -> Forward:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._subnet.plan
        narrow = plan is not None and self._path in plan.sizes
        with unsupplied():
            return (own if narrow else base)(self, *args, **kwargs)

    return forward
