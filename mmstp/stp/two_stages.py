"""Detectors of two stages, as far as a trace can follow: heads without a choice of regions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..subnets.swap import Role, swap
from .whole_images import take_whole_images


def has_two_stages(model: nn.Module) -> bool:
    """Whether a detector looks at regions that it chose itself."""
    return bool(getattr(model, 'with_roi_head', False))


@dataclass(frozen=True)
class TwoStages(Role):
    """A detector of two stages that can be traced: its tensors without a choice of regions.

    Which regions the second stage looks at depends on what the first finds, which no trace can
    follow. Here one summary of all feature maps stands for them: the same layers read the same
    channels. How many there are is told to the costs (`regions_of`).
    """

    def members(self, base: Any) -> dict[str, Any]:
        def forward(
            self: Any, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
        ) -> Any:
            if mode != 'tensor' or data_samples is not None:
                return base.forward(self, inputs, data_samples, mode)
            return two_stages(self, inputs)

        return {'forward': forward}


def two_stages(model: Any, inputs: Tensor) -> list[Any]:
    """What the heads of a detector of two stages give; see `TwoStages`."""
    maps = model.extract_feat(inputs)
    found = [model.rpn_head.forward(maps)] if model.with_rpn else []
    for _, head, extractor in second_stage(model):
        layers: Any = extractor.roi_layers
        size = layers[0].output_size
        pooled = torch.stack([F.adaptive_avg_pool2d(m, size) for m in maps[: len(layers)]])
        regions = pooled.sum(dim=0)
        if model.roi_head.with_shared_head:
            regions = model.roi_head.shared_head(regions)
        found.append(head.forward(regions))
    return found


def second_stage(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """The heads of boxes and of masks: path, head, and what pools their regions."""
    for kind in ('bbox', 'mask'):
        heads = getattr(model.roi_head, f'{kind}_head', None)
        if heads is None:
            continue
        # masks may share the extractor of boxes
        pools = getattr(model.roi_head, f'{kind}_roi_extractor', None)
        pools = model.roi_head.bbox_roi_extractor if pools is None else pools
        path = f'roi_head.{kind}_head'
        if isinstance(heads, nn.ModuleList):  # a cascade
            for i, (head, pool) in enumerate(zip(heads, pools, strict=True)):
                yield f'{path}.{i}', head, pool
        else:
            yield path, heads, pools


def regions_of(model: Any) -> dict[str, int]:
    """How many regions of an image each head of the second stage has in a test, by its path."""
    test = model.test_cfg or {}
    proposals, kept = test.get('rpn') or {}, test.get('rcnn') or {}
    number = {
        'bbox_head': int(proposals.get('max_per_img', 1000)),
        'mask_head': int(kept.get('max_per_img', 100)),
    }
    found = {path: number[path.split('.')[1]] for path, _, _ in second_stage(model)}
    if model.roi_head.with_shared_head:
        found['roi_head.shared_head'] = number['bbox_head']
    return found


class FirstStage(nn.Module):
    """The first stage of a detector of two: images to feature maps and what the RPN's head gives.

    The second stage needs both.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, inputs: Tensor) -> Any:
        """Lists of maps by level; the head gives one of each kind."""
        detector: Any = self.detector
        maps = detector.extract_feat(inputs)
        return maps, detector.rpn_head.forward(maps)


def dense_part(model: nn.Module) -> nn.Module:
    """What a model does without a choice of regions: all of it, but for a second stage.

    A detector of one stage takes images alone from here on (`take_whole_images`).
    """
    if has_two_stages(model):
        return FirstStage(model)
    take_whole_images(model)
    return model


@dataclass(frozen=True)
class AnyChannels(Role):
    """What pools regions makes room for as many channels as the maps have, not as it was told."""

    def members(self, base: Any) -> dict[str, Any]:
        def forward(self: Any, feats: Any, *args: Any, **kwargs: Any) -> Any:
            self.out_channels = feats[0].shape[1]
            return base.forward(self, feats, *args, **kwargs)

        return {'forward': forward}


def free_channels(model: nn.Module) -> None:
    """Has every extractor of regions take maps of any number of channels."""
    for module in model.modules():
        if hasattr(module, 'roi_layers') and hasattr(module, 'out_channels'):
            swap(module, AnyChannels())
