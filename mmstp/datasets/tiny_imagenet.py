"""Tiny ImageNet in the layout in which it is distributed."""

from pathlib import Path
from typing import Any

from mmpretrain.datasets import BaseDataset

from ..errors import OptionError
from ..registry import DATASETS

TINY_IMAGENET_LAYOUT = (
    'the unpacked tiny-imagenet-200.zip: wnids.txt, words.txt, train/<wnid>/images/*.JPEG, '
    'val/images/*.JPEG, val/val_annotations.txt'
)


@DATASETS.register_module()
class TinyImageNet(BaseDataset):
    """Tiny ImageNet: 200 classes of ImageNet, 100,000 training and 10,000 validation images, 64x64.

    ::

        tiny-imagenet-200
        ├── wnids.txt                 one class id per line
        ├── words.txt                 class id, tab, names
        ├── train/<wnid>/images/*.JPEG
        └── val
            ├── images/*.JPEG
            └── val_annotations.txt   file, class id, box; separated by tabs

    Labels number the class ids in alphabetical order, as tools do that read folders, not in the
    order of ``wnids.txt``. The test images have no labels and are not read.

    Args:
        data_root: Folder with the files above.
        split: ``'train'`` or ``'val'``.
        **kwargs: Further arguments of :class:`mmpretrain.datasets.BaseDataset`, such as
            ``pipeline``.

    Raises:
        OptionError: If ``split`` is neither.
        ValueError: If a line of ``val_annotations.txt`` has no class id of ``wnids.txt``, or a
            class id of ``wnids.txt`` is not in ``words.txt``.
        FileNotFoundError: If a file or a folder of the layout or an annotated image is missing, or
            a class has no images. Raised when the list of images is read, which is at once unless
            ``lazy_init`` is set.

    References:
        Le and Yang, "Tiny ImageNet Visual Recognition Challenge", CS 231N, Stanford, 2015,
        http://cs231n.stanford.edu/tiny-imagenet-200.zip
    """

    def __init__(self, data_root: str, split: str = 'train', **kwargs: Any) -> None:
        if split not in ('train', 'val'):
            raise OptionError(f"TinyImageNet.split must be 'train' or 'val', got {split!r}")
        self.split = split
        super().__init__(ann_file='', data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict per image: ``img_path`` and ``gt_label``, an int below 200; sets the names."""
        root = Path(self.data_root).expanduser()
        wnids = sorted(_read_lines(root / 'wnids.txt'))
        self._metainfo.setdefault('classes', _class_names(root / 'words.txt', wnids))
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        return _list_train(root, labels) if self.split == 'train' else _list_val(root, labels)

    def extra_repr(self) -> list[str]:
        """Lines for ``repr``."""
        return [f'Root of dataset: \t{self.data_root}', f'Split: \t{self.split}']


def _missing(path: Path, what: str) -> FileNotFoundError:
    return FileNotFoundError(
        f'Tiny ImageNet: {what} {str(path)!r}; expected {TINY_IMAGENET_LAYOUT}'
    )


def _read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank."""
    if not path.is_file():
        raise _missing(path, 'no file')
    return [line for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]


def _image_names(folder: Path) -> list[str]:
    """Sorted names of the images in a folder; at least one."""
    if not folder.is_dir():
        raise _missing(folder, 'no folder')
    names = sorted(path.name for path in folder.glob('*.JPEG'))
    if not names:
        raise _missing(folder, 'no *.JPEG in')
    return names


def _class_names(path: Path, wnids: list[str]) -> tuple[str, ...]:
    """Names of the classes, in the order of ``wnids``."""
    names = dict(line.split('\t', maxsplit=1) for line in _read_lines(path) if '\t' in line)
    for wnid in wnids:
        if wnid not in names:
            line = f'no line for class id {wnid!r} of wnids.txt'
            raise ValueError(f"{path}: {line}, as 'id<tab>names'")
    return tuple(names[wnid] for wnid in wnids)


def _list_train(root: Path, labels: dict[str, int]) -> list[dict]:
    folders = {root / 'train' / wnid / 'images': label for wnid, label in labels.items()}
    return [
        dict(img_path=str(folder / name), gt_label=label)
        for folder, label in folders.items()
        for name in _image_names(folder)
    ]


def _list_val(root: Path, labels: dict[str, int]) -> list[dict]:
    annotations, folder = root / 'val' / 'val_annotations.txt', root / 'val' / 'images'
    lines, names = _read_lines(annotations), set(_image_names(folder))
    data_list = []
    for number, line in enumerate(lines, start=1):
        name, wnid, *_ = [*line.split('\t'), '']  # a line may be a name alone
        if wnid not in labels:
            raise ValueError(
                f'{annotations}, line {number}: {line!r} gives {wnid!r} as class id; expected '
                "'file<tab>class id<tab>box' with a class id of wnids.txt"
            )
        if name not in names:
            what = f'no image, but named by line {number} of {annotations.name},'
            raise _missing(folder / name, what)
        data_list.append(dict(img_path=str(folder / name), gt_label=labels[wnid]))
    return data_list
