"""The pool of architectures that meet the budget, and how it shrinks to one."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from ..architecture import Architecture
from ..errors import CheckpointError, OptionError
from ..search.space import SearchSpace
from .options import check_seed, is_number, refuse_not_finite

SAMPLINGS = ('even', 'uniform')


class ArchitecturePool:
    """Candidates with their scores: moving averages of their distillation loss (Eq. 8).

    Args:
        architectures: The candidates, at least one.
        alpha: Weight of a new loss in the score; the first one sets it.
        sampling: ``'even'``: shuffled passes over the pool; ``'uniform'``: independent draws
            (Alg. 1).
        seed: Of the draws. Ranks that share it draw the same.
        per_rank: Whether each rank trains a target of its own, so that a step has as many visits as
            there are ranks. All ranks draw all of them, in the same order.

    Raises:
        OptionError: If an argument is out of range.
    """

    def __init__(
        self,
        architectures: Sequence[Architecture],
        alpha: float = 0.3,
        sampling: str = 'even',
        seed: int = 0,
        per_rank: bool = False,
    ) -> None:
        if not architectures:
            raise OptionError('a pool needs at least one architecture')
        if not is_number(alpha) or not 0 < alpha <= 1:
            raise OptionError(f'pool.alpha={alpha!r}: expected a number in (0, 1]')
        check_seed(seed)
        if sampling not in SAMPLINGS:
            raise OptionError(f'pool.sampling={sampling!r}: expected one of {SAMPLINGS}')
        if type(per_rank) is not bool:
            raise OptionError(f'pool.per_rank={per_rank!r}: expected True or False')
        self.alpha = alpha
        self.sampling = sampling
        self.per_rank = per_rank
        self.rng = random.Random(seed)
        self._scores: dict[Architecture, float | None] = dict.fromkeys(architectures)
        self._visits: dict[Architecture, int] = dict.fromkeys(architectures, 0)
        self._queue: list[Architecture] = []

    @classmethod
    def drawn(
        cls, space: SearchSpace, rows: NDArray[np.int64], size: int, seed: int, **options: Any
    ) -> ArchitecturePool:
        """A pool of some members of a space, at random.

        Args:
            space: The search space.
            rows: Those that meet the budget, as rows of the space.
            size: How many are drawn; all of them where there are fewer.
            seed: Of what is drawn, and of the pool.
            **options: ``alpha``, ``sampling`` and ``per_rank``.
        """
        chosen = np.random.default_rng(seed).permutation(len(rows))[:size]
        return cls(list(map(space.decode, rows[chosen])), seed=seed, **options)

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def draws(self) -> int:
        """How many targets a step has."""
        several = self.per_rank and dist.is_available() and dist.is_initialized()
        return dist.get_world_size() if several else 1

    def __contains__(self, architecture: Architecture) -> bool:
        return architecture in self._scores

    @property
    def scores(self) -> Mapping[Architecture, float | None]:
        """The score of every candidate left; None where it was not visited yet."""
        return dict(self._scores)

    @property
    def visits(self) -> Mapping[Architecture, int]:
        """How often every candidate left was trained."""
        return dict(self._visits)

    @property
    def best(self) -> Architecture:
        """The candidate with the lowest score; the first one as long as none was visited."""
        return min(self._scores, key=lambda a: self._score(a, math.inf))

    def _score(self, architecture: Architecture, unvisited: float) -> float:
        score = self._scores[architecture]
        return unvisited if score is None else score

    def sample(self) -> Architecture:
        """The next target architecture."""
        candidates = list(self._scores)
        if self.sampling == 'uniform':
            return self.rng.choice(candidates)
        if not self._queue:
            self._queue = self.rng.sample(candidates, len(candidates))
        return self._queue.pop()

    def update(self, architecture: Architecture, loss: float) -> None:
        """Takes a target loss into the candidate's score (Eq. 8).

        Raises:
            KeyError: If it is not in the pool.
            NotFiniteError: If the loss is not finite.
        """
        refuse_not_finite({f'the target loss of {architecture}': loss})
        score = self._scores[architecture]
        mean = loss if score is None else (1 - self.alpha) * score + self.alpha * loss
        self._scores[architecture] = mean
        self._visits[architecture] += 1

    def shrink(self, count: int) -> list[Architecture]:
        """Drops the ``count`` candidates with the highest scores, but never the last one.

        A candidate that was not visited is dropped only when no visited one is left to drop.

        Returns:
            What was dropped, worst first.
        """
        count = min(count, len(self) - 1)
        # sorted is stable: of equal scores the earlier candidate stays
        order = sorted(self._scores, key=lambda a: self._score(a, -math.inf))
        dropped = order[::-1][:count]
        for architecture in dropped:
            del self._scores[architecture], self._visits[architecture]
        self._queue = [a for a in self._queue if a in self._scores]
        return dropped

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next draws and drops depend on, in plain types."""
        version, internal, gauss = self.rng.getstate()
        return {
            'architectures': [str(a) for a in self._scores],
            'scores': list(self._scores.values()),
            'visits': list(self._visits.values()),
            'queue': [str(a) for a in self._queue],
            'random_state': [version, list(internal), gauss],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            CheckpointError: If it is something else: nothing is taken over then.
        """
        try:
            architectures = [Architecture.parse(text) for text in state['architectures']]
            scores, visits, rng = list(state['scores']), list(state['visits']), random.Random()
            queue = [Architecture.parse(text) for text in state['queue']]
            version, internal, gauss = state['random_state']
            rng.setstate((version, tuple(internal), gauss))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f'the state of the pool is damaged: {type(error).__name__}: {error}'
            ) from error
        if not len(set(architectures)) == len(scores) == len(visits) > 0:
            raise CheckpointError(
                f'the state of the pool is damaged: {len(set(architectures))} architectures, '
                f'{len(scores)} scores and {len(visits)} numbers of visits'
            )
        for architecture, score, visit in zip(architectures, scores, visits, strict=True):
            scored = is_number(score) if visit else score is None
            if type(visit) is not int or visit < 0 or not scored:
                raise CheckpointError(
                    f'the state of the pool is damaged: {architecture} has score {score!r} after '
                    f'{visit!r} visits; expected a finite number, or None and 0'
                )
        if strangers := set(queue).difference(architectures):
            raise CheckpointError(
                f'the state of the pool is damaged: {min(map(str, strangers))} is in its queue, '
                'and not in the pool'
            )
        self._scores = dict(zip(architectures, scores, strict=True))
        self._visits = dict(zip(architectures, visits, strict=True))
        self._queue, self.rng = queue, rng


@dataclass(frozen=True)
class ShrinkSchedule:
    """When the pool shrinks, and by how many (Alg. 1)."""

    size: int  # candidates at the start, N_p
    interval: int  # iterations between two drops, k
    end: int  # the iteration after which one candidate is left, T_shr

    def due(self, iteration: int) -> bool:
        """Whether candidates may go after ``iteration`` (counted from 1), whatever the pool is."""
        return iteration == self.end or (iteration < self.end and not iteration % self.interval)

    def drops(self, iteration: int, left: int) -> int:
        """How many of the ``left`` candidates go after ``iteration`` (counted from 1)."""
        if iteration >= self.end:
            return left - 1
        if iteration % self.interval:
            return 0
        return min(self.interval * (self.size - 1) // self.end, left - 1)
