"""Which channels are worth keeping: an order for every group of coupled channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.analysis import ChannelGraph
from ..analysis.groups import WHOLE
from .plan import named_tensors


def channel_orders(
    graph: ChannelGraph, tensors: Mapping[str, Tensor], weights: Collection[str], norm: int
) -> list[Tensor | None]:
    """The units of every group, the most important first.

    The importance of a channel is the norm of all weights that make or read it (the group norm of
    DepGraph, CVPR 2023), each tensor scaled to mean 1.

    Args:
        graph: The analysis of the model.
        tensors: Its tensors by state-dict key.
        weights: The keys of those that count.
        norm: 1 or 2: the sum of magnitudes or of squares.

    Returns:
        For every group a permutation of its units; None where no weight holds it.
    """
    scores: list[Tensor | None] = [None] * len(graph.groups)
    for key, dims in graph.dims.items():
        if key not in weights:
            continue
        magnitudes = tensors[key].detach().double().abs().pow(norm)
        for dim, dim_map in dims.items():
            energy = magnitudes.transpose(0, dim).flatten(1).sum(1)
            group_of = torch.from_numpy(dim_map.group)
            unit_of = torch.from_numpy(dim_map.unit)
            for group in set(dim_map.group.tolist()) - {WHOLE}:
                here = group_of == group
                score = torch.zeros(graph.groups[group].units, dtype=torch.float64)
                score.index_add_(0, unit_of[here], energy.cpu()[here])
                score /= score.mean().clamp_min(torch.finfo(torch.float64).tiny)
                scores[group] = score if scores[group] is None else scores[group] + score
    return [
        None if score is None else torch.argsort(score, descending=True, stable=True)
        for score in scores
    ]


def reordered(group_of: Any, unit_of: Any, orders: Sequence[Tensor | None]) -> Tensor:
    """Where every position of a dimension gets its content from."""
    index = torch.arange(len(group_of))
    for group, order in enumerate(orders):
        positions = torch.from_numpy((group_of == group).nonzero()[0])
        if order is None or not len(positions):
            continue
        # (units, positions per unit), in the order of the positions within each unit
        by_unit = positions[torch.from_numpy(unit_of)[positions].argsort(stable=True)]
        by_unit = by_unit.reshape(len(order), -1)
        index[by_unit.reshape(-1)] = by_unit[order].reshape(-1)
    return index


@torch.no_grad()
def order_channels(
    model: nn.Module, graph: ChannelGraph, norm: int, by: Mapping[str, Tensor] | None = None
) -> None:
    """Sorts the channels of every group in place; the model computes what it did before.

    Args:
        model: The dense model.
        graph: Its analysis.
        norm: See `channel_orders`.
        by: By state-dict key, the weights that count; by default the model's own.
    """
    tensors = named_tensors(model)
    weights = {key for key, parameter in model.named_parameters() if parameter.dim() > 1}
    orders = channel_orders(graph, tensors if by is None else by, weights, norm)
    for key, dims in graph.dims.items():
        for dim, dim_map in dims.items():
            index = reordered(dim_map.group, dim_map.unit, orders)
            tensors[key].copy_(tensors[key].index_select(dim, index.to(tensors[key].device)))
