"""The latency that a config names, with what speaks against it."""

from __future__ import annotations

from typing import Any

from mmengine.logging import MMLogger

from ..search.latency_fit import doubts
from ..subnets.supernet import Supernet


def use_latency(supernet: Supernet, path: Any) -> None:
    """Gives a supernet the latency of ``model.latency``, and warns of what speaks against it.

    Raises:
        LatencyError: As `Supernet.use_latency`.
        SpaceError: Likewise.
    """
    supernet.use_latency(path)
    if fit := supernet.cost.latency_fit:
        for doubt in doubts(fit.table.dense_ms, fit.accuracy):
            MMLogger.get_instance('mmstp').warning(f'model.latency={str(path)!r}: {doubt}')
