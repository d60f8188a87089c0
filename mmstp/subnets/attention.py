"""Attention, and other modules that cannot run narrow with their own forward.

Most modules can: their layers narrow themselves, and sizes that their code holds are supplied
(`mmstp.subnets.sized_calls`). What is left are modules that hand their numbers to a function as a
whole and have it check them, such as `torch.nn.MultiheadAttention`. A forward registered here
replaces the module's own while some of its tensors are narrower, in the supernet and in exports.
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


@register_forward(nn.MultiheadAttention)
def multihead_attention(
    self,
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

    torch's function takes the width of all heads together for the width of the embedding. This one
    can be scripted, as torch's module can.

    Raises:
        NotImplementedError: With ``add_bias_kv`` or ``add_zero_attn``, which no backbone uses.
    """
    if self.bias_k is not None or self.add_zero_attn:
        raise NotImplementedError('attention with add_bias_kv or add_zero_attn cannot be narrowed')
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
    elif not self.batch_first:
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    if self.in_proj_weight is not None:
        q_weight, k_weight, v_weight = self.in_proj_weight.chunk(3)
    else:
        q_weight, k_weight, v_weight = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    if self.in_proj_bias is not None:
        q_bias, k_bias, v_bias = self.in_proj_bias.chunk(3)
    heads, width = self.num_heads, self.head_dim
    q = F.linear(query, q_weight, q_bias).unflatten(-1, [heads, width]).transpose(1, 2)
    k = F.linear(key, k_weight, k_bias).unflatten(-1, [heads, width]).transpose(1, 2)
    v = F.linear(value, v_weight, v_bias).unflatten(-1, [heads, width]).transpose(1, 2)
    mask = _additive(attn_mask, q)
    if mask is not None and mask.dim() == 3:  # one for every sample and head of the dense module
        mask = mask.unflatten(0, [q.shape[0], -1])[:, :heads]
    padding = _additive(key_padding_mask, q)
    if padding is not None:
        padding = padding.reshape(q.shape[0], 1, 1, -1)
        mask = padding if mask is None else mask + padding
    rate = self.dropout if self.training else 0.0
    shares: Tensor | None = None
    if need_weights:
        scores = q @ k.transpose(-1, -2) / width**0.5
        if mask is not None:
            scores = scores + mask
        shares = F.dropout(scores.softmax(-1), rate)
        out = shares @ v
        if average_attn_weights:
            shares = shares.mean(1)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, rate)
    out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
    if not batched:
        return out[0], None if shares is None else shares[0]
    return out if self.batch_first else out.transpose(0, 1), shares


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask of booleans (true: not to be seen) as one that is added to the scores."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float('-inf'))
