"""Detectors that ask what is known of the images, as far as a trace can follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..foreign import pytree
from ..subnets.swap import Role, Swapped, swap
from .tasks import is_detector


class TakesImages(Swapped):
    """Marks a detector that takes images alone for whole ones."""


@dataclass(frozen=True)
class WholeImages(Role):
    """A detector that can be traced: images alone are whole ones, of which nothing is padding.

    Transformers mask what is padding, so they ask for the size of every image. Where that is given
    (training, tests) it is what counts.
    """

    @property
    def mixin(self) -> type[Swapped]:
        return TakesImages

    def members(self, base: Any) -> dict[str, Any]:
        def forward(
            self: Any, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
        ) -> Any:
            if mode == 'tensor' and data_samples is None:
                data_samples = whole_images(inputs)
            return base.forward(self, inputs, data_samples, mode)

        return {'forward': forward}


def whole_images(inputs: Tensor) -> list[Any]:
    """What is known of images that fill their batch, of shape (batch, channels, height, width)."""
    from mmdet.structures import DetDataSample

    size = tuple(inputs.shape[2:])
    shapes = dict.fromkeys(('batch_input_shape', 'pad_shape', 'img_shape', 'ori_shape'), size)
    known: dict[str, Any] = {**shapes, 'scale_factor': (1.0, 1.0)}
    found = [DetDataSample() for _ in range(len(inputs))]
    for sample in found:
        for name, value in known.items():  # not copied: where sizes are free they are symbols
            sample.set_field(value, name, field_type='metainfo')
    return found


def masks_padding(model: nn.Module, inputs: Tensor) -> bool:
    """Whether what a detector gives depends on which part of its images is padding."""
    padded = whole_images(inputs)
    for sample in padded:
        height, width = sample.img_shape
        sample.set_metainfo({'img_shape': (height // 2, width // 2)})
    given = [
        pytree.tree_leaves(model(inputs, samples, mode='tensor'))
        for samples in (whole_images(inputs), padded)
    ]
    return not all(map(torch.equal, *given))


def take_whole_images(model: nn.Module) -> None:
    """Has a detector take images alone, in place; other models are left as they are."""
    if is_detector(model) and not isinstance(model, TakesImages):
        swap(model, WholeImages())
