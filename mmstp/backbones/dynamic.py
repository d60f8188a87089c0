"""The weight-sharing network as a backbone: any of its subnets, in a classifier or a detector."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..architecture import Architecture
from ..calibration import norms_with_statistics
from ..dynamic import DynamicMixin
from ..fields import options_of, refuse_unknown
from ..loading import require_fit, require_pretrained
from ..registry import MODELS, build_model
from ..space import SearchSpace
from ..supernet import Supernet


class StatisticsError(RuntimeError):
    """A subnet in eval mode without running statistics of its own."""


class DynamicBackboneMixin(DynamicMixin):
    """What a backbone that `DynamicBackbone` built has beside what its dense class has.

    Attributes:
        supernet: The backbone with its search space and costs.
        pad: Whether outputs have the dense backbone's shapes.
    """

    supernet: Supernet
    pad: bool
    _architecture: Architecture | None

    @property
    def architecture(self) -> Architecture:
        """The subnet that the backbone is; assigned, it becomes another.

        Raises:
            ArchitectureError: If it is not a member of the space.
        """
        return self._architecture or self.supernet.space.largest

    @architecture.setter
    def architecture(self, architecture: Architecture | str | Sequence[Any] | None) -> None:
        if architecture is not None:
            architecture = Architecture.from_nested(architecture)
            self.supernet.space.check(architecture)
        vars(self)['_architecture'] = architecture

    @contextmanager
    def activate(self, architecture: Architecture) -> Iterator[None]:
        """Inside, the backbone is this subnet; afterwards what it was before."""
        before = self._architecture
        self.architecture = architecture
        try:
            yield
        finally:
            vars(self)['_architecture'] = before

    def calibrate(
        self,
        batches: Iterable[Any],
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> int:
        """Gives the present subnet running statistics of its own; see `Supernet.calibrate`."""
        return self.supernet.calibrate(self.architecture, batches, forward)


@MODELS.register_module()
def DynamicBackbone(
    backbone: Mapping[str, Any],
    architecture: Architecture | str | Sequence[Any] | None = None,
    pad: bool = True,
    input_shape: Sequence[int] = (3, 224, 224),
    space: Mapping[str, Any] | None = None,
    init_cfg: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a dense backbone whose layers are dynamic, so that it can be any of its subnets.

    The result is an instance of the dense backbone's own class with its state-dict keys, and takes
    the main network's weights (``prefix='model.backbone.'`` in a checkpoint of an STP run). It is a
    `DynamicBackboneMixin`: ``detector.backbone.architecture = '((2, 3, 4, 2), (…))'`` switches it.

    Running statistics are the main network's, which do not fit a subnet: in eval mode a subnet
    without its own (``calibrate``, `CalibrationHook`) is an error.

    Args:
        backbone: The dense backbone's config.
        architecture: The subnet that it is at first; the dense backbone by default. One entry per
            stage of the backbone.
        pad: Fill channels that the subnet leaves out with zeros in the outputs, so that a neck or
            head that was built for the dense backbone reads those of every subnet. Without it,
            outputs are as narrow as an export's.
        input_shape: Shape of one image (channels, height, width), for the trace and the costs.
        space: Options of `SearchSpace`. Names of stages and layers are those in the backbone.
        init_cfg: Replaces the dense backbone's.
        **options: Further options of the dense backbone, over those in ``backbone``.

    Raises:
        ArchitectureError: If the architecture is not a member of the space.
        FieldError: If an option of ``space`` does not exist.
        SupernetError: If the backbone cannot be run as its subnets (``with_cp=True``).
        TypeError: If the dense backbone has no such option.
    """
    space = dict(space or {})
    refuse_unknown('backbone.space', space, options_of(SearchSpace))
    dense = {key: value for key, value in backbone.items() if key != 'init_cfg'}
    network: Any = build_model({**dense, **options})
    vars(network)['init_cfg'] = None if init_cfg is None else dict(init_cfg)
    require_pretrained(network)
    require_fit(
        network,
        'A dynamic backbone takes the weights of the dense one: in a checkpoint of an STP run '
        "those under prefix='model.backbone.'.",
    )
    supernet = Supernet(network, torch.zeros(1, *input_shape), fix_outputs=False, **space)
    base: Any = type(network)
    network.__class__ = _switchable(base)
    vars(network).update(supernet=supernet, pad=pad, _architecture=None)
    network.architecture = architecture
    return network


@functools.cache
def _switchable(base: Any) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        architecture = self.architecture
        if architecture == self.supernet.space.largest:
            return base.forward(self, *args, **kwargs)
        _check_statistics(self, architecture)
        with self.supernet.activate(architecture):
            outputs = base.forward(self, *args, **kwargs)
        return self.supernet.pad(outputs, architecture) if self.pad else outputs

    members = {
        'forward': forward,
        'static_class': base,
        'added': ('supernet', 'pad', '_architecture'),
        '__module__': __name__,
        '__doc__': base.__doc__,
    }
    return type(base.__name__, (DynamicBackboneMixin, base), members)


def _check_statistics(network: Any, architecture: Architecture) -> None:
    if architecture in network.supernet.statistics:
        return
    for path, norm in norms_with_statistics(network):
        if not norm.training:
            raise StatisticsError(
                f'{path} is in eval mode and has the running statistics of the main network, '
                f'which do not fit its subnet {architecture}: add '
                "dict(type='mmstp.CalibrationHook') to custom_hooks, or call "
                'backbone.calibrate(batches of images)'
            )
