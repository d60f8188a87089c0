"""The weight-sharing network as a backbone: any of its subnets, in a classifier or a detector."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..architecture import Architecture
from ..checkpoints import require_fit
from ..config_fields import options_of, positive, refuse_unknown
from ..errors import ModelError, StatisticsError
from ..registry import HOOKS, MODELS, build_model
from ..search.space import SearchSpace
from ..stp.hooks.statistics import on_images
from ..stp.of_runner import unwrapped
from ..subnets.modules import DynamicMixin
from ..subnets.norm_statistics import norms_with_statistics
from ..subnets.supernet import Supernet
from ..subnets.swap import Role, Swapped, swap
from .compact_model import set_init_cfg

STATISTICS = 'mmstp_statistics'  # where those of subnets lie in a checkpoint


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Gives the subnets that `DynamicBackbone`s are running statistics of their own.

    Before training, validation or testing they are estimated on training images, with the
    augmentations and in the batches of the training, where the subnet has none. They are kept in
    the checkpoints, and taken from there.

    Args:
        num_images: Training images for the statistics.

    Raises:
        OptionError: If the number is out of range.
    """

    priority = 'VERY_HIGH'

    def __init__(self, num_images: int = 2000, **unknown: Any) -> None:
        refuse_unknown('custom_hooks (mmstp.CalibrationHook)', unknown, options_of(CalibrationHook))
        self.num_images = positive('CalibrationHook.num_images', num_images)

    def before_train(self, runner: Runner) -> None:
        for backbone in dynamic_backbones(runner).values():
            backbone.supernet.check_intact()
        self.before_val(runner)

    def before_val(self, runner: Runner) -> None:
        for path, backbone in dynamic_backbones(runner).items():
            architecture, supernet = backbone.architecture, backbone.supernet
            if architecture in (supernet.space.largest, *supernet.norm_statistics):
                continue
            dataloader = runner.train_dataloader
            number = min(self.num_images, len(dataloader.dataset))
            runner.logger.info(
                f'{path}: estimating statistics of the subnet {architecture} on {number} images'
            )
            on_images(unwrapped(runner), dataloader, self.num_images, backbone.calibrate)

    before_test = before_val

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATISTICS] = {
            path: {str(a): own for a, own in backbone.supernet.norm_statistics.items()}
            for path, backbone in dynamic_backbones(runner).items()
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        for path, backbone in dynamic_backbones(runner).items():
            for text, statistics in checkpoint.get(STATISTICS, {}).get(path, {}).items():
                backbone.supernet.set_norm_statistics(Architecture.of(text), statistics)


def dynamic_backbones(runner: Runner) -> dict[str, Any]:
    """The runner's `DynamicBackbone`s by their paths; a `ModelError` where there is none."""
    model = unwrapped(runner)
    found = {p: m for p, m in model.named_modules() if isinstance(m, DynamicBackboneMixin)}
    if not found:
        raise ModelError(
            f'mmstp.CalibrationHook: {type(model).__name__} has no mmstp.DynamicBackbone; the '
            'networks of this hook are those'
        )
    return found


class DynamicBackboneMixin(DynamicMixin):
    """What a backbone that `DynamicBackbone` built has beside what its dense class has."""

    supernet: Supernet  # the backbone with its search space and costs
    pad: bool  # whether outputs have the dense backbone's shapes
    _architecture: Architecture | None

    @property
    def architecture(self) -> Architecture:
        """The subnet that the backbone is; assigned, it becomes another one of the space."""
        return self._architecture or self.supernet.space.largest

    @architecture.setter
    def architecture(self, architecture: Architecture | str | Sequence[Any] | None) -> None:
        if architecture is not None:
            architecture = Architecture.of(architecture)
            self.supernet.space.check(architecture)
        self._architecture = architecture

    @contextmanager
    def activate(self, architecture: Architecture) -> Iterator[None]:
        """Inside, the backbone is this subnet; afterwards what it was before."""
        before, self.architecture = self._architecture, architecture
        try:
            yield
        finally:
            self.architecture = before

    def calibrate(
        self, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
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
    without its own (``calibrate``, `CalibrationHook`) is an error. It can be copied, but not
    pickled, as nodes of its trace cannot: save its ``state_dict``.

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
    set_init_cfg(network, init_cfg)
    require_fit(
        network,
        'A dynamic backbone takes the weights of the dense one: in a checkpoint of an STP run '
        "those under prefix='model.backbone.'.",
    )
    supernet = Supernet(network, torch.zeros(1, *input_shape), fix_outputs=False, **space)
    swap(network, Switchable(), supernet=supernet, pad=pad, _architecture=None)
    network.architecture = architecture
    return network


@dataclass(frozen=True)
class Switchable(Role):
    """A backbone that runs as the subnet that its ``architecture`` names."""

    @property
    def mixin(self) -> type[Swapped]:
        return DynamicBackboneMixin

    def members(self, base: type[nn.Module]) -> dict[str, Any]:
        @functools.wraps(base.forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            architecture, supernet = self.architecture, self.supernet
            if architecture == supernet.space.largest:
                return base.forward(self, *args, **kwargs)
            if architecture not in supernet.norm_statistics:
                stale = [path for path, norm in norms_with_statistics(self) if not norm.training]
                if stale:
                    raise StatisticsError(
                        f'{stale[0]} is in eval mode and has the running statistics of the main '
                        f'network, which do not fit its subnet {architecture}: add '
                        "dict(type='mmstp.CalibrationHook') to custom_hooks, or call "
                        'backbone.calibrate(batches of images)'
                    )
            with supernet.activate(architecture):
                outputs = base.forward(self, *args, **kwargs)
            return supernet.pad(outputs, architecture) if self.pad else outputs

        return {'forward': forward}
