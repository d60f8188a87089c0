"""Forwards for modules that cannot run narrow with their own.

Most modules can: their layers narrow themselves, and sizes that their code holds are supplied
(`mmstp.dynamic.calls`). What is left are modules that hand their numbers to a function as a whole
and have it check them, such as `torch.nn.MultiheadAttention`. A forward registered here replaces
the module's own while some of its tensors are narrower, in the supernet and in exports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[..., Any]


FORWARDS: dict[type[nn.Module], Forward] = {}


def register_forward(*types: type[nn.Module]) -> Callable[[Forward], Forward]:
    """Registers the forward of narrow modules of these types and their subclasses.

    It is called as ``forward(module, *args, **kwargs)`` and reads the module's tensors, and the
    attributes that `register_sizes` gives, as those of the subnet.
    """

    def register(forward: Forward) -> Forward:
        for kind in types:
            FORWARDS[kind] = forward
        return forward

    return register


def forward_of(module: nn.Module) -> Forward | None:
    """The registered forward of a module's type; None where its own serves."""
    return next((FORWARDS[kind] for kind in type(module).__mro__ if kind in FORWARDS), None)


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a block that is skipped hands on."""
    return args[0] if args else next(iter(kwargs.values()))


@register_forward(nn.MultiheadAttention)
def multihead_attention(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`torch.nn.MultiheadAttention` with fewer heads of the same width.

    torch's function takes the width of all heads together for the width of the embedding.

    Raises:
        NotImplementedError: With ``add_bias_kv`` or ``add_zero_attn``, which no backbone uses.
    """
    if module.bias_k is not None or module.add_zero_attn:
        raise NotImplementedError('attention with add_bias_kv or add_zero_attn cannot be narrowed')
    batched = query.dim() == 3
    if not batched:
        query, key, value = query[None], key[None], value[None]
    elif not module.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    joint = module.in_proj_bias
    biases = (None, None, None) if joint is None else joint.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    mask = _additive(attn_mask, q)
    if mask is not None and mask.dim() == 3:  # one for every sample and head of the dense module
        mask = mask.unflatten(0, (len(q), -1))[:, : module.num_heads]
    padding = _additive(key_padding_mask, q)
    if padding is not None:
        padding = padding.reshape(len(q), 1, 1, -1)
        mask = padding if mask is None else mask + padding
    rate = module.dropout if module.training else 0.0
    shares = None
    if need_weights:
        scores = q @ k.transpose(-1, -2) / module.head_dim**0.5
        shares = F.dropout((scores if mask is None else scores + mask).softmax(-1), rate)
        out = shares @ v
        shares = shares.mean(1) if average_attn_weights else shares
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, rate)
    out = F.linear(out.transpose(1, 2).flatten(2), module.out_proj.weight, module.out_proj.bias)
    if not batched:
        return out[0], None if shares is None else shares[0]
    return out if module.batch_first else out.transpose(0, 1), shares


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask of booleans (true: not to be seen) as one that is added to the scores."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float('-inf'))
