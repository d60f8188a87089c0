"""Stimulative-training pruning (STP, ECCV 2024) for MMEngine models."""

from mmstp import registry
from mmstp.version import __version__

__all__ = ['__version__', 'registry']
