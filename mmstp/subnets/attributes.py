"""Numbers that static layers hold about their own channels.

A layer's forward reads its weights' shapes, but some numbers (``groups``) are its own, and others
(``in_channels``) are shown to people and read by other libraries. A rule computes them from the
positions that a subnet keeps. Layers without a rule hold no such number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]


Size = int | tuple[int, ...]


SizeRule = Callable[[nn.Module, Kept], dict[str, Size]]


SIZE_RULES: dict[type[nn.Module], SizeRule] = {}


def register_sizes(*types: type[nn.Module]) -> Callable[[SizeRule], SizeRule]:
    """Registers a rule for modules of these types and their subclasses.

    The rule gets the module and, by parameter name and dimension, the positions kept, where not
    all of them are; it returns the attributes that change.
    """

    def register(rule: SizeRule) -> SizeRule:
        for kind in types:
            SIZE_RULES[kind] = rule
        return rule

    return register


def sizes_of(module: nn.Module, kept: Kept) -> dict[str, Size]:
    """The attributes of a module when only ``kept`` is left of its tensors."""
    for kind in type(module).__mro__:
        if kind in SIZE_RULES:
            return SIZE_RULES[kind](module, kept)
    return {}


@register_sizes(_ConvNd)
def _convolution(module: nn.Module, kept: Kept) -> dict[str, Size]:
    assert isinstance(module, _ConvNd)
    dims = kept.get('weight', {})
    if module.transposed:  # grouped ones stay whole
        inner = len(dims[0]) if 0 in dims else module.in_channels
        outer = len(dims[1]) if 1 in dims else module.out_channels
        return {'in_channels': inner, 'out_channels': outer}
    rows = dims.get(0, np.arange(module.out_channels))
    columns = len(dims[1]) if 1 in dims else module.weight.shape[1]
    groups = module.groups
    if groups > 1:  # a group all of whose output channels are gone is gone
        groups = len(np.unique(rows // (module.out_channels // groups)))
    return {'in_channels': columns * groups, 'out_channels': len(rows), 'groups': groups}


@register_sizes(nn.Linear)
def _linear(module: nn.Module, kept: Kept) -> dict[str, Size]:
    assert isinstance(module, nn.Linear)
    dims = kept.get('weight', {})
    return {
        'out_features': len(dims[0]) if 0 in dims else module.out_features,
        'in_features': len(dims[1]) if 1 in dims else module.in_features,
    }


@register_sizes(_NormBase)
def _norm(module: nn.Module, kept: Kept) -> dict[str, Size]:
    assert isinstance(module, _NormBase)
    for name in ('weight', 'running_mean'):
        if 0 in kept.get(name, {}):
            return {'num_features': len(kept[name][0])}
    return {'num_features': module.num_features}


@register_sizes(nn.LayerNorm)
def _layer_norm(module: nn.Module, kept: Kept) -> dict[str, Size]:
    assert isinstance(module, nn.LayerNorm)
    dims = kept.get('weight', {})
    shape = tuple(
        len(dims[dim]) if dim in dims else size for dim, size in enumerate(module.normalized_shape)
    )
    return {'normalized_shape': shape}


@register_sizes(nn.GroupNorm)
def _group_norm(module: nn.Module, kept: Kept) -> dict[str, Size]:
    assert isinstance(module, nn.GroupNorm)
    channels = len(kept.get('weight', {}).get(0, range(module.num_channels)))
    if module.num_groups == 1:
        return {'num_channels': channels, 'num_groups': 1}
    groups = channels // (module.num_channels // module.num_groups)
    return {'num_channels': channels, 'num_groups': groups}


@register_sizes(nn.MultiheadAttention)
def _multihead_attention(module: nn.Module, kept: Kept) -> dict[str, Size]:
    assert isinstance(module, nn.MultiheadAttention)
    joint = kept.get('in_proj_weight', {})
    heads, width = module.num_heads, module.embed_dim
    if 0 in joint:
        heads = len(joint[0]) // (3 * module.head_dim)
    elif 0 in kept.get('q_proj_weight', {}):
        heads = len(kept['q_proj_weight'][0]) // module.head_dim
    if 1 in joint:
        width = len(joint[1])
    return {'num_heads': heads, 'embed_dim': width}
