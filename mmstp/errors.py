"""The errors that mmstp raises."""

from __future__ import annotations


class ArchitectureError(ValueError):
    """An architecture that does not parse, or does not fit a search space."""


class FieldError(TypeError):
    """An option that does not exist."""


class CheckpointError(RuntimeError):
    """Weights that do not fit the network they are loaded into."""


class BudgetError(ValueError):
    """A target that no architecture of the space meets."""


class OperatorError(ValueError):
    """An operator that is registered twice."""


class TraceError(RuntimeError):
    """A model that `torch.export` cannot follow."""


class SpaceError(ValueError):
    """A search space that cannot be built: a wrong option, or nothing that can be pruned."""


class CallError(RuntimeError):
    """A forward that does not make the calls that were traced."""


class CompactSpecError(ValueError):
    """A compact network's description that does not fit the dense network."""


class SupernetError(RuntimeError):
    """A model that cannot be run as its subnets."""


class VerificationError(RuntimeError):
    """A trace that does not compute what the model does."""


class StatisticsError(RuntimeError):
    """A subnet in eval mode without running statistics of its own."""


class ExportError(RuntimeError):
    """A subnet that cannot be described by the dense network's config."""


class FeatureError(ValueError):
    """A backbone without the feature maps that are asked for."""


class DetectorError(ExportError):
    """A detector that cannot be built around a compact backbone."""


class LaunchError(RuntimeError):
    """A run that cannot start as asked."""
