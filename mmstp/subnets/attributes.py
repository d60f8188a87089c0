"""Attributes: the integers that static layers hold about their own channels.

A layer's forward reads its weights' shapes, but some numbers (``groups``) are its own, and others
(``in_channels``) are shown to people and read by other libraries. A rule works them out from the
shapes that the layer's tensors have in a subnet. Layers without a rule hold no such number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from ..foreign import Convolution, NormBase, own_tensors

Shapes = Mapping[str, Sequence[int]]
Attribute = int | tuple[int, ...]
AttributeRule = Callable[[nn.Module, Shapes], dict[str, Attribute]]
ATTRIBUTE_RULES: dict[type[nn.Module], AttributeRule] = {}


def register_sizes(*types: type[nn.Module]) -> Callable[[AttributeRule], AttributeRule]:
    """Registers a rule for modules of these types and their subclasses.

    The rule gets the module, whose attributes are the dense ones, and by name the shapes that its
    own parameters and buffers have in a subnet. It returns the attributes that follow from them,
    always the same ones.
    """

    def register(rule: AttributeRule) -> AttributeRule:
        for kind in types:
            ATTRIBUTE_RULES[kind] = rule
        return rule

    return register


def holder(key: str) -> tuple[str, str]:
    """The layer whose attributes follow from a tensor, and the tensor's name in it.

    A parametrized layer holds its own deeper down: ``'conv.parametrizations.weight.original1'``.
    """
    path, _, name = key.rpartition('.')
    layer, mark, inner = f'.{path}'.partition('.parametrizations.')
    return (layer[1:], f'{mark[1:]}{inner}.{name}') if mark else (path, name)


def attributes_of(module: nn.Module, shapes: Shapes | None = None) -> dict[str, Attribute]:
    """The attributes of a module whose tensors have these shapes.

    Args:
        module: Its attributes are the dense ones.
        shapes: By name; those that are not given are the module's own.
    """
    for kind in type(module).__mro__:
        if kind in ATTRIBUTE_RULES:
            dense = {name: tuple(x.shape) for name, x in own_tensors(module).items()}
            if isinstance(inside := getattr(module, 'parametrizations', None), nn.Module):
                for name, x in inside.named_parameters(prefix='parametrizations'):
                    dense[name] = tuple(x.shape)
            return ATTRIBUTE_RULES[kind](module, {**dense, **(shapes or {})})
    return {}


# of a layer whose weight is worked out of other tensors, the one of the weight's shape
_WEIGHTS = (
    'weight', 'weight_orig', 'weight_v',
    'parametrizations.weight.original1', 'parametrizations.weight.original',
)  # fmt: skip


def _weight(shapes: Shapes) -> Sequence[int] | None:
    return next((shapes[name] for name in _WEIGHTS if name in shapes), None)


@register_sizes(Convolution)
def _convolution(module: nn.Module, shapes: Shapes) -> dict[str, Attribute]:
    assert isinstance(module, Convolution)
    if (weight := _weight(shapes)) is None:
        return {}
    first, second, groups = weight[0], weight[1], module.groups
    dense = module.in_channels if module.transposed else module.out_channels
    if groups > 1 and groups >= module.in_channels // groups:  # whole groups are dropped
        groups = first * groups // dense
    sizes = {'in_channels': second * groups, 'out_channels': first}
    if module.transposed:  # the weight's first dimension is the input's
        sizes = {'in_channels': first, 'out_channels': second * groups}
    return {**sizes, 'groups': groups}


@register_sizes(nn.Linear)
def _linear(module: nn.Module, shapes: Shapes) -> dict[str, Attribute]:
    if (weight := _weight(shapes)) is None:
        return {}
    return {'out_features': weight[0], 'in_features': weight[1]}


@register_sizes(NormBase)
def _norm(module: nn.Module, shapes: Shapes) -> dict[str, Attribute]:
    known = shapes.get('weight') or shapes.get('running_mean')
    return {} if known is None else {'num_features': known[0]}


@register_sizes(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(module: nn.Module, shapes: Shapes) -> dict[str, Attribute]:
    return {'normalized_shape': tuple(shapes['weight'])} if 'weight' in shapes else {}


@register_sizes(nn.GroupNorm)
def _group_norm(module: nn.Module, shapes: Shapes) -> dict[str, Attribute]:
    assert isinstance(module, nn.GroupNorm)
    if 'weight' not in shapes:
        return {}
    channels = shapes['weight'][0]
    if module.num_groups == 1:
        return {'num_channels': channels, 'num_groups': 1}
    groups = channels // (module.num_channels // module.num_groups)
    return {'num_channels': channels, 'num_groups': groups}


@register_sizes(nn.MultiheadAttention)
def _multihead_attention(module: nn.Module, shapes: Shapes) -> dict[str, Attribute]:
    assert isinstance(module, nn.MultiheadAttention)
    if 'in_proj_weight' in shapes:
        rows, width = shapes['in_proj_weight']
        return {'num_heads': rows // (3 * module.head_dim), 'embed_dim': width}
    return {'num_heads': shapes['q_proj_weight'][0] // module.head_dim}
