"""The feature maps of a backbone: what a detector's neck reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..config_fields import constructor_options
from ..errors import FeatureError
from ..registry import build_model

# Options with which backbones of classifiers return maps instead of one vector.
_MAPS = {'gap_before_final_norm': False, 'out_type': 'featmap'}
_MOST = 64  # outputs that are tried


@dataclass(frozen=True)
class FeatureMap:
    """One output of a backbone; ``stride``: pixels of the image between two of its positions."""

    channels: int
    stride: int
    index: int | None = None  # its entry of ``out_indices``, where the backbone has that option


@torch.no_grad()
def feature_maps(network: nn.Module, shape: Sequence[int]) -> list[FeatureMap]:
    """What a backbone returns for one image, whose shape is (channels, height, width)."""
    with eval_mode(network):
        outputs = network(torch.zeros(1, *shape))
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    maps = []
    for output in outputs:
        if not isinstance(output, Tensor) or output.dim() != 4:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise FeatureError(
                f'{type(network).__name__} returns {what}, where a neck reads maps of shape '
                '(images, channels, height, width)'
            )
        maps.append(FeatureMap(output.shape[1], round(shape[1] / output.shape[2])))
    return maps


def with_maps(config: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's config with the options that make it return maps, where it has such."""
    accepted = constructor_options(type(build_model(config)))
    return {**config, **{key: value for key, value in _MAPS.items() if key in accepted}}


def pyramid(config: Mapping[str, Any], shape: Sequence[int]) -> list[FeatureMap]:
    """The last feature map of a backbone at each stride, from fine to coarse."""
    network = build_model(config)
    name, accepted = type(network).__name__, constructor_options(type(network))
    maps = [] if 'out_indices' in accepted else feature_maps(network, shape)
    for index in range(_MOST) if 'out_indices' in accepted else ():
        try:
            network = build_model({**config, 'out_indices': (index,)})
        except Exception as error:  # each class has its own way to say that there is none
            if not index:
                raise FeatureError(f'{name} has no output 0: {error}') from error
            break
        found = feature_maps(network, shape)
        if not found:
            break
        maps.append(replace(found[0], index=index))
    if not maps:
        raise FeatureError(f'{name} returns no feature maps')
    by_stride = {one.stride: one for one in maps}
    return [by_stride[stride] for stride in sorted(by_stride)]
