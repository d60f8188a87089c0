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

from .swap import Swapped

Forward = Callable[..., Any]
FORWARDS: dict[type[nn.Module], Forward] = {}
_SUPPLIED: set[Forward] = set()


def register_forward(
    *types: type[nn.Module], supplied: bool = False
) -> Callable[[Forward], Forward]:
    """Registers the forward of narrow modules of these types.

    Subclasses that have no forward of their own get it too. It is called as
    ``forward(module, *args, **kwargs)`` and reads the module's tensors, and the attributes that
    `register_sizes` gives, as those of the subnet.

    Args:
        *types: Types of modules.
        supplied: Whether it calls the same modules and operators as the own forward, so that sizes
            are supplied in it as they are there.
    """

    def register(forward: Forward) -> Forward:
        for kind in types:
            FORWARDS[kind] = forward
        if supplied:
            _SUPPLIED.add(forward)
        return forward

    return register


def forward_of(module: nn.Module) -> Forward | None:
    """The registered forward of a module's type; None where its own serves."""
    for kind in type(module).__mro__:
        if kind in FORWARDS:
            return FORWARDS[kind]
        if 'forward' in vars(kind) and not issubclass(kind, Swapped):
            return None
    return None


def is_supplied(forward: Forward | None) -> bool:
    """Whether sizes are supplied in a forward: in a module's own, and where it was said so."""
    return forward is None or forward in _SUPPLIED


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


@register_forward(nn.TransformerEncoderLayer, supplied=True)
def transformer_encoder_layer(
    self,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """`torch.nn.TransformerEncoderLayer` without the fused operator that it runs in eval mode.

    That one takes the weights of the layers inside, and their width for that of all heads.
    """
    x, padding = src, src_key_padding_mask
    if self.norm_first:
        x = x + self._sa_block(self.norm1(x), src_mask, padding, is_causal)
        x = x + self._ff_block(self.norm2(x))
    else:
        x = self.norm1(x + self._sa_block(x, src_mask, padding, is_causal))
        x = self.norm2(x + self._ff_block(x))
    return x


@register_forward(nn.TransformerEncoder, supplied=True)
def transformer_encoder(
    self,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """`torch.nn.TransformerEncoder` without the nested tensors that the fused operator takes."""
    x = src
    for layer in self.layers:
        x = layer(x, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    if self.norm is not None:
        x = self.norm(x)
    return x
