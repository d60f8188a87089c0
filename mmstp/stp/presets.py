"""Presets: what depends on the kind of run, chosen together by a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .survivor import SurvivorPhase


@dataclass(frozen=True)
class Preset:
    """Values of the options that a config leaves out.

    Attributes:
        end: Of `PoolHook`: the part of the iterations that the search takes.
        visits: Of `PoolHook`: how often each member of the pool is to be visited.
        screen: Of `PoolHook`, where the main network is trained already: batches for a first score.
        target_ce: Of `STP`, like the next two.
        warmup: See there.
        survivor: See there.
    """

    end: float
    visits: int | None
    screen: int
    target_ce: float
    warmup: float
    survivor: SurvivorPhase | None


PRESETS = {
    # the paper's, for its schedules of 200 to 500 epochs
    'paper': Preset(end=0.6, visits=None, screen=0, target_ce=0.0, warmup=0.0, survivor=None),
    # most for the time, from random weights or from a trained network
    'recommended': Preset(
        end=0.05, visits=10, screen=1, target_ce=1.0, warmup=0.05, survivor=SurvivorPhase()
    ),
}


def preset_of(name: Any) -> Preset:
    """The preset of that name; a `ValueError` where there is none."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f'model.preset={name!r}: expected one of {", ".join(PRESETS)}')
    return PRESETS[name]
