"""The latency of all architectures of a space, in closed form, fitted to a few that were measured.

Latency is no sum of what a trace tells, but close to a sum of a few numbers that `CostModel` has in
closed form: multiply-adds, the same with channels rounded up to whole vectors, elements written,
parameters read, layers started, and a constant. What each of them costs on a device is fitted to
the measured members. No cost is negative, so a larger architecture is never the faster one.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArchitectureError, LatencyError
from .latency_table import LatencyTable
from .space import SearchSpace

FEWEST = 20  # members that a fit needs
# what a table is expected to reach: of the dense network's times, of the fit's errors and ranks
_SPREAD, _ERROR, _RANK = 0.05, 0.05, 0.98
_FOLDS = 5

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """How a fit does on networks that were not used in it (cross validation).

    Attributes:
        mean: The mean error, relative to what was measured.
        largest: The largest one.
        rank: Spearman's correlation.
    """

    mean: float
    largest: float
    rank: float

    def __str__(self) -> str:
        return (
            f'mean error {self.mean:.1%}, at most {self.largest:.1%}, rank correlation '
            f'{self.rank:.3f}'
        )


class LatencyFit:
    """Latency in closed form, fitted to measured members.

    Args:
        table: The measured members.
        space: Their space.
        features: Gives numbers for rows of the space, shape (architectures, features).

    Attributes:
        table: As above.
        weights: Milliseconds of one of each feature, none below 0; shape (features,).
        accuracy: On members that a fit did not see.

    Raises:
        LatencyError: If there are too few, or one is no member.
    """

    def __init__(
        self, table: LatencyTable, space: SearchSpace, features: Callable[[Any], Numbers]
    ) -> None:
        self.table, self._features = table, features
        try:
            ratios = {space.check(text): ratio for text, ratio in table.ratios.items()}
        except ArchitectureError as error:
            raise LatencyError(f'ratios: an entry is no member of the space: {error}') from error
        fewest = min(FEWEST, space.size)
        if len(ratios) < fewest:
            raise LatencyError(
                f'the latency table holds {len(ratios)} networks; a fit needs {fewest}. Go on '
                'measuring with tools/latency_table.py'
            )
        ratios[space.largest] = 1.0
        x = features(np.stack([space.encode(member) for member in ratios]))
        y = table.dense * np.array([*ratios.values()])
        self.weights = non_negative(x, y)
        places = np.random.default_rng(0).permutation(len(y)) % _FOLDS
        found = np.empty(len(y))
        for fold in range(_FOLDS):
            left_out = places == fold
            found[left_out] = x[left_out] @ non_negative(x[~left_out], y[~left_out])
        errors = np.abs(found / y - 1)
        rank = rank_correlation(found, y)
        self.accuracy = Accuracy(float(errors.mean()), float(errors.max()), rank)

    def __str__(self) -> str:
        return f'{self.table}; of networks not in the fit {self.accuracy}'

    def by(self, features: Callable[[Any], Numbers]) -> LatencyFit:
        """The same weights, for rows of another space of the network."""
        found = copy.copy(self)
        found._features = features
        return found

    def __call__(self, rows: NDArray[np.int64]) -> Numbers:
        """Milliseconds of each architecture."""
        found: Numbers = self._features(rows) @ self.weights
        return found


def rank_correlation(a: Numbers, b: Numbers) -> float:
    """Spearman's correlation of two rows of numbers; 0 where all of one are the same."""
    ranks = []
    for row in (a, b):
        _, place, count = np.unique(row, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])  # of equal ones the mean
    return float(np.corrcoef(ranks)[0, 1]) if all(map(np.ptp, ranks)) else 0.0


def doubts(dense_ms: Sequence[float], accuracy: Accuracy) -> list[str]:
    """What speaks against a table, a sentence each: an unsteady clock, a fit that is too coarse.

    Args:
        dense_ms: Of a `LatencyTable`.
        accuracy: Of a `LatencyFit` of it.
    """
    found = []
    low, high = min(dense_ms), max(dense_ms)
    spread = (high - low) / float(np.median(dense_ms))
    if spread > _SPREAD:
        found.append(
            f'the dense network took {low:.3g} to {high:.3g} ms, which is {spread:.1%} of the '
            f'median apart (more than {_SPREAD:.0%}): the clock changed, or something else ran. '
            'Fractions are of the same rounds; milliseconds are no more exact than that'
        )
    if accuracy.mean > _ERROR or accuracy.rank < _RANK:
        found.append(
            f'networks that are not in the fit have {accuracy}; expected at most {_ERROR:.0%} '
            f'mean error and a rank correlation of at least {_RANK}. Measure more --networks, or '
            'more --rounds while nothing else runs'
        )
    return found


def non_negative(x: Numbers, y: Numbers) -> Numbers:
    """The weights of at least 0 for which ``x @ weights`` has the least squared relative error.

    At its optimum the weights above 0 are those of ordinary least squares with their columns
    alone, so with a few columns all subsets can be tried.

    Args:
        x: Shape (rows, columns).
        y: Shape (rows,).
    """
    scale = np.abs(x).max(axis=0)
    scaled = x / np.where(scale > 0, scale, 1) / y[:, None]
    best, least = np.zeros(x.shape[1]), np.inf
    for count in range(1, x.shape[1] + 1):
        for columns in itertools.combinations(np.flatnonzero(scale).tolist(), count):
            chosen = scaled[:, columns]
            weights = np.linalg.lstsq(chosen, np.ones(len(y)), rcond=None)[0]
            error = float(((chosen @ weights - 1) ** 2).sum())
            if (weights >= 0).all() and error < least:
                best, least = np.zeros(x.shape[1]), error
                best[list(columns)] = weights / scale[list(columns)]
    return best
