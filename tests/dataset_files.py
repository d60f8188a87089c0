"""A few images in the formats of the data sets that cannot be had here."""

import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
from mmpretrain.datasets import CIFAR100
from PIL import Image


def jpeg(size: tuple[int, int]) -> bytes:
    """The bytes of a JPEG of random pixels, (width, height) large."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format='JPEG')
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def make_imagenet(root: Path) -> None:
    """One image in each of the 1,000 class folders."""
    content = jpeg((80, 60))
    for split in ('train', 'val'):
        for i in range(1000):
            write(root / split / f'n{i:08d}' / f'{split}_{i}.JPEG', content)


def make_cifar100(root: Path) -> None:
    """Pickles like the archive's: rows of 3,072 bytes, planes of red, green and blue."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        entry = dict(
            filenames=[f'{split}_{i}.png' for i in range(10)],
            batch_label=f'{split}ing batch 1 of 1',
            fine_labels=rng.integers(0, 100, 10).tolist(),
            coarse_labels=rng.integers(0, 20, 10).tolist(),
            data=rng.integers(0, 256, (10, 3072), dtype=np.uint8),
        )
        write(root / 'cifar-100-python' / split, pickle.dumps(entry, protocol=2))


def accept_generated_cifar100(monkeypatch) -> None:
    """mmpretrain compares the archive's checksums, which generated files cannot have."""
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', None]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', None]])


def make_tiny_imagenet(root: Path) -> None:
    """One image in each of the 200 classes, five for validation."""
    content, wnids = jpeg((64, 64)), [f'n{i:08d}' for i in range(200)]
    for wnid in wnids:
        write(root / 'train' / wnid / 'images' / f'{wnid}_0.JPEG', content)
    for i in range(5):
        write(root / 'val' / 'images' / f'val_{i}.JPEG', content)
    write(root / 'wnids.txt', '\n'.join(wnids).encode())
    write(root / 'words.txt', '\n'.join(f'{wnid}\ta name' for wnid in wnids).encode())
    lines = (f'val_{i}.JPEG\t{wnids[i]}\t0\t0\t63\t63' for i in range(5))
    write(root / 'val' / 'val_annotations.txt', '\n'.join(lines).encode())
