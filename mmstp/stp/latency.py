"""The latency that a config names, and warnings of what speaks against a table."""

from __future__ import annotations

from typing import Any

from mmengine.logging import MMLogger

from ..errors import LatencyError
from ..search.latency_fit import LatencyFit, doubts
from ..subnets.supernet import Supernet


def use_latency(supernet: Supernet, path: Any) -> None:
    """Gives a supernet the latency of ``model.latency``, and warns of what speaks against it.

    Raises:
        LatencyError: As `Supernet.use_latency`.
        SpaceError: Likewise.
    """
    try:
        supernet.use_latency(path)
    except LatencyError as error:
        raise LatencyError(f'model.latency: {error}') from error
    if fit := supernet.cost.latency_fit:
        warn_of_doubts(fit, f'model.latency={str(path)!r}')


def warn_of_doubts(fit: LatencyFit, where: str) -> None:
    """Warns of what speaks against a table of the latency, which lies at ``where``."""
    for doubt in doubts(fit.table.dense_ms, fit.accuracy):
        MMLogger.get_instance('mmstp').warning(f'{where}: {doubt}')
