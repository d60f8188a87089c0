"""What the tools share that write a subnet out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ..architecture import Architecture
from ..deploy.export import BACKBONE, max_abs_difference, reload, shares, write_export
from ..errors import LaunchError
from ..stp.algorithm import STP
from ..stp.hooks.statistics import calibrate_on
from ..stp.tasks import is_detector
from .data_checks import check_input_shape, image_shape


def export_subnet(
    directory: str | Path,
    config: Config,
    stp: STP,
    architecture: Architecture,
    num_images: int,
    source: str | None = None,
    dataset_meta: dict[str, Any] | None = None,
) -> None:
    """Cuts a subnet out, estimates its norm statistics, writes it, reloads it and compares.

    Args:
        directory: Made if missing.
        config: Of the STP run.
        stp: Its algorithm, with the weights.
        architecture: The subnet's.
        num_images: Training images for the statistics; 0 keeps those of the network.
        source: As ``dataset_meta``, of `write_export`.
        dataset_meta: What the run noted of its data.

    Raises:
        RuntimeError: If the network that its files build gives other numbers.
    """
    logger = MMLogger.get_instance('mmstp')
    network = stp.export(architecture)
    if num_images:
        dataloader = Runner.build_dataloader(config.train_dataloader)
        check_images(dataloader, stp)
        number = min(num_images, len(dataloader.dataset))
        logger.info(f'estimating the statistics of norm layers on {number} images')
        calibrate_on(network, dataloader, num_images)
    description = write_export(directory, network, config, stp, architecture, source, dataset_meta)
    difference = max_abs_difference(
        network, reload(directory), stp.supernet.inputs[0].shape, stp.task.tensors
    )
    logger.info(
        f'{directory}: {description["architecture"]}, {shares(description)}; reloaded from its '
        f'config and weights it differs by {difference}'
    )
    if description['backbone'] != BACKBONE:
        logger.info(f'{BACKBONE} for detectors is not written: {description["backbone"]}')
    if difference != 0:
        raise RuntimeError(f'the reloaded network differs by {difference}')


def check_images(dataloader: Any, stp: STP) -> None:
    """Warns where the costs in the export are those of images of another size than the run's.

    Images of detectors have many sizes.
    """
    if is_detector(stp.supernet.model):
        return
    try:
        shape = tuple(stp.supernet.inputs[0].shape[1:])
        check_input_shape(shape, {'train_dataloader': image_shape(dataloader, stp)})
    except LaunchError as error:
        # tests may have another size than the training; the run itself was checked when it began
        MMLogger.get_instance('mmstp').warning(str(error))
