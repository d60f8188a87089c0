"""Another class for a module that is there already, and its own class back.

A swapped class has its own class for a base, and keeps its name and module: registries, `repr`,
tracers that ask where a class comes from see the own one. It cannot be imported by that name, so
its instances pickle and copy as the own class, the roles and their state; the class is made anew
where they are loaded.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from torch import nn

FORWARD = '_mmstp_forward'  # where a forward is kept that was set on a module itself


class Role:
    """What a swapped class does beside what its own class does.

    A frozen dataclass: equal roles of one class share the class that is made, and a role pickles.
    """

    def members(self, base: type[nn.Module]) -> dict[str, Any]:
        """Attributes of the class that is made."""
        raise NotImplementedError

    @property
    def mixin(self) -> type[Swapped]:
        """A further base of the class that is made."""
        return Swapped

    def __deepcopy__(self, memo: dict[int, Any]) -> Role:
        return self


class Swapped:
    """Marks a class that was swapped in.

    Attributes:
        mmstp_class: The class that it stands for.
        mmstp_role: What it does beside.
        mmstp_added: Names of the attributes that its instances have in addition.
    """

    mmstp_class: ClassVar[Any]
    mmstp_role: ClassVar[Role]
    mmstp_added: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **_: Any) -> None:
        """Classes that note their subclasses are not told: the swapped one stands for the own."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        make, args, *rest = reduced
        swapped: Any = type(self)
        cls, roles = swapped, list[tuple[Role, tuple[str, ...]]]()
        while issubclass(cls, Swapped):
            roles.insert(0, (cls.mmstp_role, cls.mmstp_added))
            cls = cls.mmstp_class
        # a class may have an idea of its own of what its state is (`__getstate__`)
        state = rest[0] if rest and isinstance(rest[0], dict) else {}
        left_out = {
            name: vars(self)[name] for _, added in roles for name in added if name not in state
        }
        make, *args = (cls if value is swapped else value for value in (make, *args))
        return (_rebuild, (make, tuple(args), cls, tuple(roles), left_out), *rest)


def _rebuild(
    make: Any, args: Any, cls: Any, roles: tuple[tuple[Role, tuple[str, ...]], ...], state: Any
) -> Any:
    """The module as its own class is made, and swapped again."""
    module = make(*args)
    for role, added in roles:
        cls = _swapped_class(cls, role, added)
    module.__class__ = cls
    vars(module).update(state)
    return module


def swap(module: nn.Module, role: Role, **state: Any) -> None:
    """Gives a module another class, in place.

    Args:
        module: Any module; it may be swapped already.
        role: What the class does.
        **state: Attributes that the role needs.
    """
    vars(module).update(state)
    base: Any = type(module)
    module.__class__ = _swapped_class(base, role, tuple(sorted(state)))


def unswap(module: nn.Module, mixin: type[Swapped] = Swapped) -> None:
    """Gives a module back the class that it had before it got roles with this mixin."""
    while isinstance(module, mixin):
        for name in module.mmstp_added:
            value = vars(module).pop(name, None)
            if name == FORWARD:
                vars(module)['forward'] = value
        module.__class__ = module.mmstp_class


@functools.cache
def _swapped_class(base: Any, role: Role, added: tuple[str, ...]) -> Any:
    bases = (base,) if issubclass(base, role.mixin) else (role.mixin, base)
    members = {
        **role.members(base),
        'mmstp_class': base,
        'mmstp_role': role,
        'mmstp_added': added,
        '__module__': base.__module__,
        '__qualname__': base.__qualname__,
        '__doc__': base.__doc__,
    }
    return type(base.__name__, bases, members)
