"""Presets: what depends on the kind of run, chosen together by a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from .survivor import SurvivorPhase


@dataclass(frozen=True)
class Preset:
    """Values of the options that a config leaves out.

    Attributes:
        end: Of `PoolHook`: the part of the iterations after which the search ends.
        visits: Of `PoolHook`: how often each member of the pool is to be visited.
        screen: Of `PoolHook`: batches on which candidates get a first score.
        target_ce: Of `STP`, like the next two.
        warmup: See there.
        survivor: See there.
        begin: Of `PoolHook`: the part of the iterations before the search.
    """

    end: float
    visits: int | None
    screen: int
    target_ce: float
    warmup: float
    survivor: SurvivorPhase | None
    begin: float = 0.0


PRESETS = {
    # the paper's, for its schedules of 200 to 500 epochs
    'paper': Preset(end=0.6, visits=None, screen=0, target_ce=0.0, warmup=0.0, survivor=None),
    # for short runs from random weights
    'recommended': Preset(
        end=0.05, visits=10, screen=0, target_ce=1.0, warmup=0.05, survivor=SurvivorPhase()
    ),
    # for longer ones, where half of them is enough for the main network: it is first, and teaches
    'long': Preset(
        begin=0.5,
        end=0.5,
        visits=1,
        screen=1,
        target_ce=1.0,
        warmup=0.0,
        survivor=SurvivorPhase(teacher='main'),
    ),
    # from a trained network: what a candidate keeps of it is seen without training
    'pretrained': Preset(
        end=0.0, visits=1, screen=1, target_ce=1.0, warmup=0.0, survivor=SurvivorPhase()
    ),
}


def preset_of(name: Any, trained: bool = True) -> Preset:
    """The preset of that name.

    Args:
        name: In `PRESETS`.
        trained: Whether the main network begins with weights of a training.

    Raises:
        OptionError: If there is none, or it is for networks that are trained.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise OptionError(f'model.preset={name!r}: expected one of {", ".join(PRESETS)}')
    if name == 'pretrained' and not trained:
        raise OptionError(
            "model.preset='pretrained' is for trained networks: expected model.pretrained, the "
            "checkpoint of one. From random weights the preset is 'recommended' or 'long'"
        )
    return PRESETS[name]
