"""Statistics of subnets, estimated on the images of a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..architecture import Architecture
from ..backbones import DynamicBackboneMixin
from ..calibration import calibrate
from ..fields import positive
from ..registry import HOOKS
from .models import unwrapped

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
        ValueError: If the number is out of range.
    """

    priority = 'VERY_HIGH'

    def __init__(self, num_images: int = 2000) -> None:
        self.num_images = positive('CalibrationHook.num_images', num_images)

    def before_train(self, runner: Runner) -> None:
        for backbone in dynamic_backbones(runner).values():
            backbone.supernet.check_intact()
        self._calibrate(runner)

    def before_val(self, runner: Runner) -> None:
        self._calibrate(runner)

    def before_test(self, runner: Runner) -> None:
        self._calibrate(runner)

    def _calibrate(self, runner: Runner) -> None:
        for path, backbone in dynamic_backbones(runner).items():
            architecture = backbone.architecture
            if architecture in (backbone.supernet.space.largest, *backbone.supernet.statistics):
                continue
            dataloader = runner.train_dataloader
            number = min(self.num_images, len(dataloader.dataset))
            runner.logger.info(
                f'{path}: estimating statistics of the subnet {architecture} on {number} images'
            )
            calibrate_on(unwrapped(runner), dataloader, self.num_images, backbone.calibrate)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATISTICS] = {
            path: {str(a): own for a, own in backbone.supernet.statistics.items()}
            for path, backbone in dynamic_backbones(runner).items()
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        for path, backbone in dynamic_backbones(runner).items():
            for text, statistics in checkpoint.get(STATISTICS, {}).get(path, {}).items():
                backbone.supernet.set_statistics(Architecture.parse(text), statistics)


def dynamic_backbones(runner: Runner) -> dict[str, Any]:
    """The runner's `DynamicBackbone`s by their paths.

    Raises:
        TypeError: If there is none.
    """
    model = unwrapped(runner)
    found = {p: m for p, m in model.named_modules() if isinstance(m, DynamicBackboneMixin)}
    if not found:
        raise TypeError(
            f'mmstp.CalibrationHook: {type(model).__name__} has no mmstp.DynamicBackbone; the '
            'networks of this hook are those'
        )
    return found


def calibrate_on(
    network: Any,
    dataloader: DataLoader,
    num_images: int,
    estimate: Callable[[Iterable[Tensor]], Any] | None = None,
) -> None:
    """Estimates statistics on images of a dataloader's dataset.

    The same images with the same augmentation are drawn every time and on every rank, and the
    random state is left as it was.

    Args:
        network: With a ``data_preprocessor``, as classifiers and detectors have.
        dataloader: The training's; its dataset, batch size and workers are used.
        num_images: How many images; all there are if the dataset has fewer.
        estimate: Takes the batches of images; by default those of a compact classifier are
            estimated.
    """
    if estimate is None:
        estimate = partial(calibrate, network, forward=partial(network, mode='tensor'))
    dataset: Any = dataloader.dataset
    chosen = np.random.default_rng(0).permutation(len(dataset))[:num_images].tolist()
    batches = DataLoader(
        Subset(dataset, chosen),
        batch_size=min(_batch_size(dataloader), len(chosen)),
        num_workers=dataloader.num_workers,
        collate_fn=dataloader.collate_fn,
        drop_last=True,  # every batch weighs the same in a cumulative average
    )
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_random_seed(0)
            estimate(network.data_preprocessor(batch, False)['inputs'] for batch in batches)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _batch_size(dataloader: DataLoader) -> int:
    sampler: Any = dataloader.batch_sampler  # MMDetection's, by aspect ratio, hides it from torch
    return int(dataloader.batch_size or sampler.batch_size)
