"""What is checked of the data of a run when they are built, before its first step."""

from __future__ import annotations

from typing import Any

from mmengine.runner import Runner

from ..analysis.scratch import random_state_kept
from ..datasets.labels import check_labels
from ..errors import LaunchError
from ..stp.algorithm import STP
from ..stp.of_runner import unwrapped


def check_built_data(runner: Runner) -> None:
    """Classes of the data sets of a classifier's run, and the size of the images for STP.

    Raises:
        LaunchError: If they do not belong together; see `check_labels` and `check_input_shape`.
    """
    model = unwrapped(runner)
    loaders = {'train_dataloader': runner.train_dataloader}
    if runner.val_loop is not None:
        loaders['val_dataloader'] = runner.val_dataloader
    head = getattr(getattr(model, 'model', model), 'head', None)
    number = getattr(head, 'num_classes', None)
    datasets = {f'{name}.dataset': loader.dataset for name, loader in loaders.items()}
    classifier = 'model.model' if isinstance(model, STP) else 'model'
    check_labels(datasets, number if type(number) is int else None, classifier)
    if isinstance(model, STP):
        shapes = {name: image_shape(loader, model) for name, loader in loaders.items()}
        check_input_shape(tuple(model.supernet.inputs[0].shape[1:]), shapes)


def check_input_shape(shape: tuple[int, ...], images: dict[str, tuple[int, ...]]) -> None:
    """Whether the network was traced, and its costs counted, for images that the run has.

    Raises:
        LaunchError: If none of its data sets has images of that shape.
    """
    if images and shape not in images.values():
        found = ', '.join(f'{value} in {name}' for name, value in images.items())
        raise LaunchError(
            f'model.input_shape = {shape}, but the images have another shape: {found}. '
            'Multiply-adds and the budget would be those of other images; set model.input_shape to '
            'what the network sees (channels, height, width)'
        )


def image_shape(dataloader: Any, model: Any) -> tuple[int, ...]:
    """Shape (channels, height, width) of an image as the network gets it."""
    with random_state_kept():
        batch = dataloader.collate_fn([dataloader.dataset[0]])
        inputs = model.data_preprocessor(batch, False)['inputs']
    image = inputs[0]
    return tuple(image.shape)
