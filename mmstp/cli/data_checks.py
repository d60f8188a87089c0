"""What is checked of the data of a run when they are built, before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..analysis.scratch import random_state_kept
from ..checkpoints import dataset_meta_of, read_checkpoint
from ..datasets.labels import check_labels, check_same_classes, classes_of, innermost
from ..errors import LaunchError
from ..stp.algorithm import STP
from ..stp.hooks.statistics import batch_size_of
from ..stp.of_runner import unwrapped
from ..stp.tasks import is_detector


def check_built_data(runner: Runner) -> None:
    """Whether the data sets are for the model; of a classifier's also classes and size of images.

    Raises:
        LaunchError: If they do not belong together, or there is nothing to train on; see
            `check_library`, `check_pretrained`, `check_same_classes`, `check_classes`,
            `check_labels` and `check_input_shape`.
    """
    model = unwrapped(runner)
    loaders = {'train_dataloader': built(runner)}
    if runner.val_loop is not None:
        loaders['val_dataloader'] = runner.val_dataloader
    field, network = ('model.model', model.model) if isinstance(model, STP) else ('model', model)
    datasets = {f'{name}.dataset': loader.dataset for name, loader in loaders.items()}
    check_library(datasets, network, field)
    if isinstance(model, STP):
        check_pretrained(model.pretrained, datasets)
    if is_detector(network):
        check_same_classes(datasets)
        check_classes(datasets, network, field)
        return
    number = getattr(getattr(network, 'head', None), 'num_classes', None)
    check_labels(datasets, number if type(number) is int else None, field)
    if isinstance(model, STP):
        shapes = {name: image_shape(loader, model) for name, loader in loaders.items()}
        check_input_shape(tuple(model.supernet.inputs[0].shape[1:]), shapes)


def built(runner: Runner) -> DataLoader[Any]:
    """The training's dataloader.

    Raises:
        LaunchError: If its data set is empty, or has no whole batch.
    """
    try:
        loader = runner.train_dataloader
    except ValueError as error:
        if 'need at least one array' not in str(error):  # NumPy's words for an empty data set
            raise
        dataset = runner.cfg.train_dataloader.dataset
        described = {name: dataset[name] for name in _SOURCES if dataset.get(name)}
        raise LaunchError(
            f'train_dataloader.dataset has no image to train on: {described}. Expected images with '
            'at least one label, or box, of the classes in metainfo, that filter_cfg leaves'
        ) from error
    if not len(loader):
        raise LaunchError(
            f'train_dataloader has no batch: {len(loader.dataset)} images, fewer than the '
            f'{batch_size_of(loader)} of a batch on every rank, and drop_last leaves out what is '
            'not a whole one. Expected more images, or a smaller train_dataloader.batch_size'
        )
    return loader


_SOURCES = ('type', 'data_root', 'ann_file', 'metainfo', 'filter_cfg')


def check_library(datasets: Mapping[str, Any], network: Any, field: str) -> None:
    """Whether the data sets give a detector boxes, and a classifier labels.

    Args:
        datasets: Built ones by the field of the config that names them.
        network: What is trained on them.
        field: Of the config that names it.

    Raises:
        LaunchError: If one is of mmdet and the network is no detector of it, or of mmpretrain and
            it is one.
    """
    detects = is_detector(network)
    other = 'mmpretrain' if detects else 'mmdet'
    for name, dataset in datasets.items():
        leaf = innermost(dataset)
        libraries = {kind.__module__.partition('.')[0] for kind in type(leaf).__mro__}
        if other in libraries:
            wanted = ('boxes', 'mmdet') if detects else ('labels of images', 'mmpretrain')
            raise LaunchError(
                f'{name} ({type(leaf).__name__}) is of {other}, and {field} '
                f'({type(network).__name__}) learns from {wanted[0]}: expected a data set of '
                f'{wanted[1]}, or the other kind of model'
            )


def check_classes(datasets: Mapping[str, Any], network: Any, field: str) -> None:
    """Whether a detector's head has as many classes as its data sets.

    Args:
        datasets: As in `check_library`, like the others.
        network: See there.
        field: See there.

    Raises:
        LaunchError: If not.
    """
    parts = dict(network.named_modules())
    for path in ('bbox_head', 'mask_head', 'roi_head.bbox_head', 'roi_head.bbox_head.0'):
        number = getattr(parts.get(path), 'num_classes', None)
        for name, dataset in datasets.items():
            classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
            if type(number) is int and classes and len(classes) != number:
                raise LaunchError(
                    f'{name} has {len(classes)} classes ({", ".join(classes[:3])}, …), '
                    f'{field}.{path}.num_classes = {number}: set num_classes={len(classes)} there, '
                    'or metainfo.classes of the data set (without it, it has those of COCO)'
                )


def check_pretrained(path: str | None, datasets: Mapping[str, Any]) -> None:
    """Whether the pretrained network numbers its classes as the data sets do.

    Args:
        path: Its checkpoint, ``model.pretrained``. What names no classes, or others, is taken: they
            may have been renamed.
        datasets: As in `check_library`.

    Raises:
        LaunchError: If it has the same classes in another order.
    """
    if path is None or '://' in path:
        return
    noted = dataset_meta_of(read_checkpoint(path))
    theirs = tuple(map(str, noted.get('classes') or ()))
    for name, dataset in datasets.items():
        own = classes_of(dataset) or ()
        if own != theirs and sorted(own) == sorted(theirs):
            raise LaunchError(
                f'model.pretrained={path!r} has the classes of {name} in another order '
                f'({", ".join(theirs[:3])}, …, not {", ".join(own[:3])}, …), so its head would '
                'name them wrongly: give the data sets its order with metainfo.classes'
            )


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
