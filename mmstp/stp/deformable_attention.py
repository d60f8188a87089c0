"""Attention that looks at a few places of each head (Deformable DETR, ICLR 2021), narrowed."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..subnets.attention import register_forward
from ..subnets.swap import Swapped

KNOWN_BY = ('num_heads', 'num_levels', 'num_points', 'sampling_offsets')


def know_deformable_attention(model: nn.Module) -> None:
    """Has such modules of a model run with the heads that they have.

    mmcv's hands its number of heads to a compiled operator where there is one, which gets no
    supplied sizes. It is known by its attributes, so that mmcv's operators need not be compiled.
    """
    for module in _attentions(model):
        register_forward(_own_class(module))(with_heads_left)


def keep_heads_left(model: nn.Module) -> None:
    """Has such modules of a compact model know how many heads they have (`init_weights` asks)."""
    for module in _attentions(model):
        module.num_heads = _heads_left(module)


def with_heads_left(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The module's own forward, with as many heads as its layers have."""
    dense, self.num_heads = self.num_heads, _heads_left(self)
    try:
        return _own_class(self).forward(self, *args, **kwargs)
    finally:
        self.num_heads = dense


def _attentions(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if all(hasattr(m, name) for name in KNOWN_BY)]


def _heads_left(module: Any) -> int:
    places = module.num_levels * module.num_points
    return int(module.sampling_offsets.out_features // (2 * places))  # two coordinates each


def _own_class(module: Any) -> Any:
    kind: Any = type(module)
    while issubclass(kind, Swapped):  # torch.export gives modules that are shared one more class
        kind = kind.mmstp_class
    return kind
