"""Multiply-adds, parameters, activations, latency of many architectures at once, in closed form.

Counts are of one forward of the traced inputs (their batch included). The unit is the multiply-add
(MAC) unless another convention is named: `torch.utils.flop_counter` counts two per multiply-add.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..analysis.analysis import ChannelGraph
from ..analysis.blocks import is_within
from ..analysis.groups import DimMap, LinearForm
from ..analysis.records import Cost
from ..architecture import Architecture
from ..errors import LatencyError, SpaceError
from .latency_fit import LatencyFit
from .latency_table import LatencyTable, refuse_other
from .space import SearchSpace

CONVENTIONS: Mapping[str, Mapping[str, int]] = {
    # multiply-adds of convolutions, linear layers and matrix products
    'macs': {'matmul': 1},
    # ptflops' way, by which the paper's Table 8 (rows 3 and 4) comes out exactly
    'ptflops': {'matmul': 1, 'bias': 1, 'norm': 2, 'activation': 1, 'add': 1, 'pool': 1},
}
METRICS = ('macs', 'params', 'activations')
LATENCY = 'latency'  # a metric where there is a table of it
# channels that processors work on at once: of AVX-512, and of a GPU's matrix units
_VECTORS = (16, 64)
# rows evaluated at once; the intermediate arrays stay within a core's cache
_CHUNK = 4096

Rows = NDArray[np.int64]
# members of a space (one, too; also as text or nested lists), or their rows
Architectures = Architecture | str | Sequence[Any] | Rows


class CostModel:
    """The costs of a space's architectures: exact integers held in float64, and latency.

    Args:
        graph: The analysis of the model.
        space: Its search space.

    Attributes:
        latency_fit: What `use_latency` made of a table; None without one.
    """

    def __init__(self, graph: ChannelGraph, space: SearchSpace) -> None:
        self._space = space
        costs = costs_of_an_image(graph.costs, space.times)
        self._tables = {
            name: _Table(costs, space, weights) for name, weights in CONVENTIONS.items()
        }
        self._tables['params'] = _Table(graph.costs, space, {'parameter': 1})
        self._tables['activations'] = _Table(costs, space, {'output': 1})
        one_each = [replace(cost, factor=1, dims=()) for cost in costs]
        self._tables['layers'] = _Table(one_each, space, {'output': 1})
        for vector in _VECTORS:
            self._tables[f'vectors of {vector}'] = _Table(costs, space, {'matmul': 1}, vector)
        self.latency_fit: LatencyFit | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names that `count` takes."""
        return METRICS if self.latency_fit is None else (*METRICS, LATENCY)

    def use_latency(self, table: LatencyTable) -> None:
        """Adds the metric ``'latency'``, in milliseconds, from measured members.

        Raises:
            LatencyError: If they are of another network or space, or too few.
        """
        refuse_other('network or space', table.space, self.described())
        self.latency_fit = LatencyFit(table, self._space, self._features)

    def within(self, space: SearchSpace) -> CostModel:
        """The costs, by the same fit of the latency, of a space with fewer choices."""
        found = CostModel(space.graph, space)
        if self.latency_fit is not None:
            found.latency_fit = self.latency_fit.by(found._features)
        return found

    def described(self) -> dict[str, Any]:
        """What tells the space and its network from others, in plain types."""
        space = self._space
        choices = {stage.name: [list(stage.depths), list(stage.widths)] for stage in space.stages}
        kept = {stage.name: space.kept(stage) for stage in space.stages}
        leaves = space.graph.traced[0].trace.inputs
        shapes = [list(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
        ends = {'smallest': space.smallest, 'largest': space.largest}
        costs = {
            f'{metric} of the {end}': int(self.count(architecture, metric)[0])
            for metric in METRICS
            for end, architecture in ends.items()
        }
        return {
            'depths and widths': choices,
            'units kept': kept,
            'input shapes': shapes,
            **costs,
        }

    def features(self, architectures: Architectures) -> dict[str, Rows]:
        """What latency is a weighted sum of, by name, each of shape (architectures,).

        Beside the metrics a constant, the number of layers, and multiply-adds with channels that
        can be pruned rounded up to whole vectors of 16 and of 64.
        """
        rows = self._rows(architectures)
        names = [name for name in self._tables if name != 'ptflops']
        constant = {'constant': np.ones(len(rows), dtype=np.int64)}
        return constant | {name: self._count(rows, name) for name in names}

    def _features(self, rows: Rows) -> NDArray[np.float64]:
        """`features` as columns."""
        return np.stack([*self.features(rows).values()], axis=1).astype(np.float64)

    def macs(self, architectures: Architectures, convention: str = 'macs') -> Rows:
        """Multiply-adds of each architecture.

        Args:
            architectures: Members of the space, one or several, or rows (`SearchSpace.encode`).
            convention: One of `CONVENTIONS`.

        Returns:
            Shape (architectures,).

        Raises:
            ArchitectureError: If one is not a member of the space.
        """
        if convention not in CONVENTIONS:
            raise ValueError(f'convention={convention!r}: expected one of {list(CONVENTIONS)}')
        return self._count(architectures, convention)

    def params(self, architectures: Architectures) -> Rows:
        """Parameters of each architecture, one or several; shape (architectures,)."""
        return self._count(architectures, 'params')

    def activations(self, architectures: Architectures) -> Rows:
        """Elements that convolutions, linear layers and matrix products write, for each.

        Shape (architectures,). As fvcore's activation count, with the scores of attention whether
        an operator keeps them in memory or not.
        """
        return self._count(architectures, 'activations')

    def latency(self, architectures: Architectures) -> NDArray[np.float64]:
        """Milliseconds of each architecture on the device of the table, shape (architectures,).

        Raises:
            LatencyError: Without a table (`use_latency`).
        """
        if self.latency_fit is None:
            raise LatencyError(
                'a budget in latency needs a table of measured networks: '
                "model.latency='latency.json', written by tools/latency_table.py"
            )
        return self.latency_fit(self._rows(architectures))

    def count(self, architectures: Architectures, metric: str) -> Rows | NDArray[np.float64]:
        """`macs`, `params`, `activations` or `latency`, by name."""
        if metric == LATENCY:
            return self.latency(architectures)
        if metric not in METRICS:
            raise ValueError(f'metric={metric!r}: expected one of {(*METRICS, LATENCY)}')
        return self._count(architectures, metric)

    def _rows(self, architectures: Architectures) -> Rows:
        if not isinstance(architectures, np.ndarray):
            architectures = np.array([self._space.encode(a) for a in _several(architectures)])
        return architectures.reshape(-1, len(self._space.sizes))

    def _count(self, architectures: Architectures, table: str) -> Rows:
        rows = self._rows(architectures)
        costs = np.empty(len(rows), dtype=np.int64)
        for start in range(0, len(rows), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            costs[chunk] = self._tables[table](rows[chunk])
        return costs


def amount(metric: str, *costs: float) -> str:
    """A cost, or a range, as people read it: ``'1,234 macs'``, ``'3.21 to 12.3 ms'``."""
    unit = 'ms' if metric == LATENCY else metric
    forms = ('.3g' if metric == LATENCY or cost < 10 else ',.0f' for cost in costs)
    return ' to '.join(map(format, costs, forms)) + f' {unit}'


def _several(architectures: Architecture | str | Sequence[Any]) -> Sequence[Any]:
    """A list of architectures, of which one may be given alone."""
    if isinstance(architectures, (Architecture, str)):
        return [architectures]
    first = next(iter(architectures), None)
    nested = isinstance(first, (list, tuple)) and isinstance(next(iter(first), None), int)
    return [architectures] if nested else architectures


def costs_of_an_image(
    costs: Sequence[Cost[DimMap]], times: Mapping[str, int]
) -> list[Cost[DimMap]]:
    """Costs of modules that run several times, as `SearchSpace.times` has it.

    Raises:
        SpaceError: If a path is of no module with a cost.
    """
    found, repeated = list[Cost[DimMap]](), set[str]()
    for cost in costs:
        here = [path for path in times if any(is_within(own, [path]) for own in cost.paths)]
        repeated.update(here)
        factor = cost.factor * math.prod(times[path] for path in here)
        found.append(replace(cost, factor=factor))
    for path in times:
        if path not in repeated:
            raise SpaceError(f'space.times: {path!r} is no module that costs anything')
    return found


class _Table:
    """Products of linear forms over the units kept, summed; each within at most one block.

    Of channels whole multiples of ``vector`` are counted.
    """

    def __init__(
        self,
        costs: Iterable[Cost[DimMap]],
        space: SearchSpace,
        weights: Mapping[str, int],
        vector: int = 1,
    ) -> None:
        self._space, self._vector = space, vector
        min_depth = space.min_depth()
        forms: dict[LinearForm, int] = {}
        # by stage and the least depth that counts: products of forms, with their factors
        blocks: dict[tuple[int, int], dict[tuple[int, ...], int]]
        blocks = defaultdict(lambda: defaultdict(int))
        for cost in costs:
            if weight := weights.get(cost.kind, 0):
                factor, indices = cost.factor * weight, list[int]()
                for dim in cost.dims:
                    if dim.form.weights:
                        indices.append(forms.setdefault(dim.form, len(forms)))
                    else:
                        factor *= dim.form.constant
                block = next((min_depth[path] for path in cost.paths if path in min_depth), (0, 0))
                blocks[block][tuple(sorted(indices))] += factor
        self._blocks = sorted(blocks.items())
        self._weights = np.zeros((len(space.graph.groups), len(forms)))
        self._constants = np.zeros(len(forms))
        for form, column in forms.items():
            self._constants[column] = form.constant
            for group, weight in form.weights:
                self._weights[group, column] = weight
        self._depths = [np.array(stage.depths) for stage in space.stages]

    def __call__(self, rows: Rows) -> Rows:
        sizes = self._space.group_units(rows) @ self._weights + self._constants
        columns = np.ascontiguousarray(np.ceil(sizes / self._vector).T * self._vector)
        total = np.zeros(len(rows))
        for (stage, depth), products in self._blocks:
            block = np.zeros(len(rows))
            for indices, factor in products.items():
                term = np.full(len(rows), float(factor))
                for index in indices:
                    term *= columns[index]
                block += term
            if depth:
                block *= self._depths[stage][rows[:, stage]] >= depth
            total += block
        return np.rint(total).astype(np.int64)
