"""What the losses of a whole search say about every architecture.

A loss of one step depends on the architecture, on the batch and on how far the training is. Here
the last two are taken out, and the first is a sum over the stages: one number for each depth and
each width. So what is learned from one architecture counts for all that share a choice with it,
also for those that were never visited. It becomes part of mmstp if `ranking.py` says that it ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmstp import Architecture

Floats = NDArray[np.float64]


class Surrogate:
    """A ridge regression of the logarithm of the target's loss.

    Args:
        ridge: The penalty on the numbers of the choices: as many losses say that they are 0.
        half_life: After this part of the losses so far, an older one weighs half.
        window: Steps, odd, of the moving average that is the trend.
        own: How many losses of an architecture weigh as much as the sum over its stages.
    """

    def __init__(
        self, ridge: float = 30.0, half_life: float = 0.3, window: int = 41, own: float = 30.0
    ) -> None:
        self.ridge, self.half_life, self.window, self.own = ridge, half_life, window, own
        self.architectures: list[Architecture] = []
        self.losses: list[float] = []
        self.controls: list[float] = []

    def add(self, architecture: Architecture, loss: float, control: float) -> None:
        """Takes in a step.

        Args:
            architecture: The target's.
            loss: Its distance to the main network.
            control: The main network's own loss on the same batch.
        """
        self.architectures.append(architecture)
        self.losses.append(math.log(max(loss, 1e-12)))
        self.controls.append(control)

    def predict(self, architectures: Sequence[Architecture]) -> Floats:
        """The logarithm of each one's loss, less what all have in common."""
        seen = {a: i for i, a in enumerate(dict.fromkeys(self.architectures))}
        every = [*seen, *(a for a in dict.fromkeys(architectures) if a not in seen)]
        place = {architecture: i for i, architecture in enumerate(every)}
        features = _one_hots(every)
        steps = np.array([place[a] for a in self.architectures], dtype=np.int64)
        residuals, weights = self._residuals(), self._weights()
        used = features[steps]
        mean = weights @ used / weights.sum()
        centred = used - mean
        gram = (centred * weights[:, None]).T @ centred
        gram[np.diag_indices_from(gram)] += self.ridge
        slopes = np.linalg.solve(gram, (centred * weights[:, None]).T @ residuals)
        fitted = (features - mean) @ slopes
        left = weights * (residuals - fitted[steps])
        total, count = (np.bincount(steps, v, len(every)) for v in (left, weights))
        found: Floats = fitted + total / (count + self.own)
        return found[[place[a] for a in architectures]]

    def _residuals(self) -> Floats:
        """The losses without their trend, and without what the batch explains."""
        loss, control = (
            values - _trend(values, self.window)
            for values in (np.array(self.losses), np.array(self.controls))
        )
        weights = self._weights()
        spread = float(weights @ control**2)
        slope = float(weights @ (control * loss)) / spread if spread else 0.0
        return loss - slope * control

    def _weights(self) -> Floats:
        number = len(self.losses)
        age = np.arange(number)[::-1] / max(1.0, self.half_life * number)
        weights: Floats = 0.5**age
        return weights


def _one_hots(architectures: Sequence[Architecture]) -> Floats:
    """A column for each value that an entry has in any of them."""
    rows = np.array([[*a.depths, *a.widths] for a in architectures], dtype=np.float64)
    columns = [column == value for column in rows.T for value in np.unique(column)]
    return np.stack(columns, axis=1).astype(np.float64)


def _trend(values: Floats, window: int) -> Floats:
    """The moving average; at the ends of what is there."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    found: Floats = (sums[high] - sums[low]) / (high - low)
    return found
