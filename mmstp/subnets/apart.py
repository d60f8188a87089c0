"""How two ways to one output disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Differences allowed, relative to the largest output; float64 decides where float32 does not pass.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-7}
DIFFERS = 'its narrowed output differs'


@dataclass(frozen=True)
class Apart:
    """How two ways disagree; more digits may make ``rounding`` go."""

    reason: str
    raises: bool = False
    rounding: bool = False


def compared(narrow: Sequence[Tensor], masked: Sequence[Tensor], tolerance: float) -> Apart | None:
    """How the outputs of one way differ from those of the other; None where they do not."""
    if len(narrow) != len(masked):
        return Apart(f'it returns {len(narrow)} tensors, not {len(masked)}')
    for a, b in zip(narrow, masked, strict=True):
        if a.shape != b.shape:
            shapes = f'{tuple(a.shape)} when narrowed, not {tuple(b.shape)}'
            return Apart(f'its output has shape {shapes}')
        if not b.numel():
            continue
        a, b = a.to(torch.complex128 if a.is_complex() else torch.float64), b.to(a.dtype)
        scale, gap = b.abs().max().item(), (a - b).abs().max().item()
        if not gap <= tolerance * scale or not math.isfinite(scale):
            values = f'by {gap:.1e} where values reach {scale:.1e}'
            return Apart(f'{DIFFERS} {values}', rounding=True)
    return None
