"""The errors that mmstp raises. Each is also the built-in error that it is a case of."""

from __future__ import annotations

__all__ = [
    'ArchitectureError',
    'BudgetError',
    'CallError',
    'CheckpointError',
    'CompactSpecError',
    'DetectorError',
    'ExportError',
    'FeatureError',
    'FieldError',
    'LatencyError',
    'LaunchError',
    'MmstpError',
    'ModelError',
    'NotFiniteError',
    'OperatorError',
    'OptionError',
    'SpaceError',
    'StatisticsError',
    'SupernetError',
    'TraceError',
    'VerificationError',
]


class MmstpError(Exception):
    """The base of all."""


# --- what is asked for ----------------------------------------------------------------------------


class ArchitectureError(MmstpError, ValueError):
    """An architecture that does not parse, or does not fit a search space."""


class SpaceError(MmstpError, ValueError):
    """A search space that cannot be built: a wrong option, or nothing that can be pruned."""


class BudgetError(MmstpError, ValueError):
    """A target that no architecture of the space meets."""


class LatencyError(BudgetError):
    """A latency table that cannot be read, or is of another space or device."""


class FieldError(MmstpError, TypeError):
    """An option that does not exist."""


class OptionError(MmstpError, ValueError):
    """A value that an option cannot have."""


class ModelError(MmstpError, TypeError):
    """A model that cannot be trained so, or has not what a hook is for."""


class OperatorError(MmstpError, ValueError):
    """An operator that is registered twice, or under a name that no operator has."""


class LaunchError(MmstpError, RuntimeError):
    """A run that cannot start as asked."""


# --- networks -------------------------------------------------------------------------------------


class TraceError(MmstpError, RuntimeError):
    """A model that `torch.export` cannot follow."""


class SupernetError(MmstpError, RuntimeError):
    """A model that cannot be run as its subnets."""


class VerificationError(MmstpError, RuntimeError):
    """A trace that does not compute what the model does."""


class CallError(MmstpError, RuntimeError):
    """A forward that does not make the calls that were traced."""


class NotFiniteError(MmstpError, ValueError):
    """A loss or a gradient that is not finite, where the training cannot go on."""


class StatisticsError(MmstpError, RuntimeError):
    """A subnet in eval mode without running statistics of its own."""


# --- files ----------------------------------------------------------------------------------------


class CheckpointError(MmstpError, RuntimeError):
    """Weights that do not fit the network they are loaded into."""


class CompactSpecError(MmstpError, ValueError):
    """A compact network's description that does not fit the dense network."""


class ExportError(MmstpError, RuntimeError):
    """A subnet that cannot be described by the dense network's config."""


class FeatureError(MmstpError, ValueError):
    """A backbone without the feature maps that are asked for."""


class DetectorError(ExportError):
    """A detector that cannot be built around a compact backbone."""
