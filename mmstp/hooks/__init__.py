"""Hooks of MMEngine's runner."""

from .calibration import STATISTICS, CalibrationHook, calibrate_on
from .evaluation import SubnetEvalHook
from .models import stp_of
from .pool import BEST, STATE, PoolHook, describe, spread
from .seeding import EpochSeedHook, seed_worker

__all__ = [
    'BEST',
    'STATE',
    'STATISTICS',
    'CalibrationHook',
    'EpochSeedHook',
    'PoolHook',
    'SubnetEvalHook',
    'calibrate_on',
    'describe',
    'seed_worker',
    'spread',
    'stp_of',
]
