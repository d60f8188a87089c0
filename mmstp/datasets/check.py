"""Check that the data of a config are there before anything is built.

Dataset classes find a missing folder late, one by one, with a message about themselves. A user
needs the field of the config to change.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .tiny_imagenet import TINY_IMAGENET_LAYOUT

_DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_CIFAR_FILES = {
    'CIFAR10': [
        f'cifar-10-batches-py/{name}'
        for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch')
    ],
    'CIFAR100': ['cifar-100-python/train', 'cifar-100-python/test'],
}
_MNIST_FILES = [
    f'{part}-{kind}-ubyte' for part in ('train', 't10k') for kind in ('images-idx3', 'labels-idx1')
]
_TINY_IMAGENET_PARTS = {
    'train': ('wnids.txt', 'words.txt', 'train'),
    'val': ('wnids.txt', 'words.txt', 'val/images', 'val/val_annotations.txt'),
}
_LAYOUTS = {
    'CIFAR10': (
        'the unpacked cifar-10-python.tar.gz: cifar-10-batches-py/{data_batch_1..5, test_batch}'
    ),
    'CIFAR100': 'the unpacked cifar-100-python.tar.gz: cifar-100-python/{train, test, meta}',
    'ImageNet': (
        'train/<class id>/*.JPEG and val/<class id>/*.JPEG, or train/*.JPEG and val/*.JPEG with '
        'meta/train.txt and meta/val.txt'
    ),
    **dict.fromkeys(
        ('MNIST', 'FashionMNIST'),
        'the unpacked files {train,t10k}-{images-idx3,labels-idx1}-ubyte (Debian has those of '
        'Fashion-MNIST in its package dataset-fashion-mnist; download=True fetches them)',
    ),
    'TinyImageNet': TINY_IMAGENET_LAYOUT,
    'CocoDataset': 'annotations/instances_{train,val}2017.json, train2017/*.jpg, val2017/*.jpg',
}


def check_datasets(cfg: Mapping[str, Any]) -> None:
    """Check that the folders and files named by the dataloaders of a config exist.

    Looks through wrappers with ``dataset`` or ``datasets``. Nothing is built, no image is opened.
    Datasets without paths pass, and so do those with an address (``s3://...``) and those with
    ``download=True``.

    Raises:
        FileNotFoundError: If a ``data_root`` is missing or an empty folder, or a part of it is that
            the type of the dataset, ``split``, ``data_prefix`` or ``ann_file`` asks for. The
            message holds the field, the value and the layout expected.
    """
    for name in _DATALOADERS:
        dataloader = cfg.get(name)
        if isinstance(dataloader, Mapping):
            check_dataset(dataloader.get('dataset'), f'{name}.dataset')


def check_dataset(dataset: Any, field: str) -> None:
    """The same for the dataset of a field, and those that it wraps."""
    for name, leaf in _leaf_datasets(dataset, field):
        _check_leaf(leaf, name)


def _leaf_datasets(dataset: Any, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the datasets inside wrappers, each with its field as ``--cfg-options`` writes it."""
    if not isinstance(dataset, Mapping):
        return  # built already: it has found its data
    if 'dataset' in dataset:
        yield from _leaf_datasets(dataset['dataset'], f'{field}.dataset')
    elif 'datasets' in dataset:
        for i, part in enumerate(dataset['datasets']):
            yield from _leaf_datasets(part, f'{field}.datasets.{i}')
    else:
        yield field, dataset


def _check_leaf(dataset: Mapping[str, Any], field: str) -> None:
    root = str(dataset.get('data_root') or '')
    if '://' in root or dataset.get('download') is True:
        return
    kind = dataset.get('type', '')
    kind = kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
    for key, value, part in _parts(dataset, kind, root):
        path = Path(root).expanduser() / part
        if '://' in part or path.is_file() or (path.is_dir() and any(path.iterdir())):
            continue
        state = 'is an empty folder' if path.is_dir() else 'does not exist'
        raise FileNotFoundError(
            f'{field}.{key} = {value!r}: {str(path.absolute())!r} {state}; expected '
            + _LAYOUTS.get(kind, 'the folder of the dataset')
        )


def _parts(dataset: Mapping[str, Any], kind: str, root: str) -> Iterator[tuple[str, str, str]]:
    """Yield field, its value, and the path below ``data_root`` it asks for."""
    split, prefix = dataset.get('split') or '', dataset.get('data_prefix') or ''
    if root:
        yield 'data_root', root, ''
    if kind in _CIFAR_FILES:
        # Both parts whatever the split: mmpretrain's integrity check wants the whole archive.
        yield from (('data_root', root, os.path.join(prefix, f)) for f in _CIFAR_FILES[kind])
        return
    if kind in ('MNIST', 'FashionMNIST'):  # mmpretrain asks for all four whatever it reads
        yield from (('data_root', root, os.path.join(prefix, f)) for f in _MNIST_FILES)
        return
    if kind == 'TinyImageNet':
        parts = _TINY_IMAGENET_PARTS.get(split or 'train', ())
        yield from (('data_root', root, part) for part in parts)
        return
    if kind in ('ImageNet', 'ImageNet21k') and split and not prefix:
        yield 'split', split, split  # the split is the name of the folder
    prefixes = prefix if isinstance(prefix, Mapping) else {'': prefix}
    for key, value in prefixes.items():
        if value:
            yield f'data_prefix.{key}' if key else 'data_prefix', value, os.path.expanduser(value)
    if ann_file := dataset.get('ann_file'):
        yield 'ann_file', ann_file, os.path.expanduser(ann_file)
