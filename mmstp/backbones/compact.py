"""A compact network as a backbone, rebuilt from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..compact import CompactPlan, compact
from ..loading import require_fit
from ..registry import MODELS


@MODELS.register_module()
def CompactBackbone(
    backbone: Mapping[str, Any],
    plan: Mapping[str, Any],
    init_cfg: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a dense backbone and cuts it down; nothing is traced.

    A function rather than a wrapping class: the result is an instance of the dense backbone's own
    class, so its state-dict keys, ``train()``, ``frozen_stages``, ``norm_eval`` and ``out_indices``
    are the dense backbone's. Loading weights that do not fit it is an error.

    Args:
        backbone: The dense backbone's config.
        plan: `mmstp.CompactPlan` as a dict, as ``tools/export.py`` writes it.
        init_cfg: Replaces the dense backbone's, whose weights would not fit.
        **options: Further options of the dense backbone, over those in ``backbone``.

    Raises:
        CompactPlanError: If the plan does not fit the backbone.
    """
    config = {**backbone, **options}
    config.pop('init_cfg', None)
    network = CompactPart(config, plan)
    if init_cfg is not None:
        vars(network)['init_cfg'] = dict(init_cfg)
    return network


@MODELS.register_module()
def CompactPart(part: Mapping[str, Any], plan: Mapping[str, Any]) -> nn.Module:
    """Builds a dense part of a network (a neck, a head) and cuts it down, as `CompactBackbone`.

    Args:
        part: The dense part's config.
        plan: `mmstp.CompactPlan` as a dict, as ``tools/export.py`` writes it.

    Raises:
        CompactPlanError: If the plan does not fit the part.
    """
    network: nn.Module = MODELS.build(dict(part))
    compact(network, CompactPlan.from_dict(plan))
    require_fit(network, 'A compact network takes the weights of the export that it describes.')
    return network
