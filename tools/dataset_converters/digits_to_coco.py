"""Scenes with handwritten digits, as a data set in COCO's format and layout.

``python tools/dataset_converters/digits_to_coco.py --out data/digits_coco``: real strokes
(scikit-learn's digits) at several sizes on textured ground, with boxes and instance masks; nothing
is downloaded. Scenes of ``train2017`` hold digits of `mmstp.Digits`' training split, those of
``val2017`` digits of its test split. The same arguments give the same data set.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.logging import MMLogger
from numpy.typing import NDArray
from pycocotools import mask as rle

from mmstp import Digits
from mmstp.atomic_files import write_json

CLASSES = Digits.METAINFO['classes']
SPLITS = {'train': 'train', 'val': 'test'}  # the part of the data set, the split of the digits
SHAPES = ((128, 128), (128, 160), (160, 128))  # height and width of a scene, in pixels
HEIGHTS = (18, 56)  # of a digit, in pixels
MOST = 6  # digits in a scene
OVERLAP = 0.15  # of a digit's box that another may cover

Image = NDArray[np.uint8]


def write_data_set(out: Path, scenes: dict[str, int], seed: int = 0) -> None:
    """Writes ``<part>2017/*.png`` and, when those are there, ``annotations/instances_*.json``.

    Args:
        out: The folder; what it has of that already is written anew.
        scenes: How many scenes, by part: ``{'train': 400, 'val': 100}``.
        seed: Of the scenes' random numbers.

    Raises:
        ValueError: If a number of scenes is below 1 or a part has another name.
        OSError: If the folder cannot be written.
    """
    for part, count in scenes.items():
        if part not in SPLITS:
            raise ValueError(f'part {part!r} of the data set: expected one of {tuple(SPLITS)}')
        if count < 1:
            raise ValueError(f'{count} scenes for {part}: expected at least 1')
    for part, count in scenes.items():
        folder = out / f'{part}2017'
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng((seed, list(SPLITS).index(part)))
        digits = _endless(SPLITS[part], rng)
        images, annotations = [], []
        for number in range(1, count + 1):
            picture, masks, labels = compose(SHAPES[number % len(SHAPES)], digits, rng)
            name = f'{number:06d}.png'
            if not cv2.imwrite(str(folder / name), picture):
                raise OSError(f'{folder / name} cannot be written')
            height, width = picture.shape[:2]
            images.append(dict(id=number, file_name=name, height=height, width=width))
            annotations += [
                dict(id=len(annotations) + 1 + i, image_id=number, **_annotation(mask, label))
                for i, (mask, label) in enumerate(zip(masks, labels, strict=True))
            ]
        write_json(
            out / 'annotations' / f'instances_{part}2017.json',
            dict(
                info=dict(description='scenes with the handwritten digits of scikit-learn'),
                images=images,
                annotations=annotations,
                categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)],
            ),
        )


def compose(
    shape: tuple[int, int], digits: Iterator[tuple[Image, int]], rng: np.random.Generator
) -> tuple[Image, list[NDArray[np.bool_]], list[int]]:
    """One scene.

    Args:
        shape: Its height and width.
        digits: Images of shape (8, 8) with their labels.
        rng: Where things lie, and how large they are.

    Returns:
        The picture, uint8 of shape (height, width, 3); a mask of shape (height, width) for every
        digit in it; their labels.
    """
    picture = texture(shape, rng)
    boxes: list[tuple[int, int, int, int]] = []
    masks: list[NDArray[np.bool_]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(2, MOST + 1))):
        digit, label = next(digits)
        ink = stroke(digit, rng)
        box = _place(ink.shape, shape, boxes, rng)
        if box is None:  # no room is left
            continue
        top, left, bottom, right = box
        colour = rng.uniform(170, 255) - rng.uniform(0, 40, 3)
        here = picture[top:bottom, left:right]
        here += ink[..., None] * (colour - here)
        mask = np.zeros(shape, dtype=bool)
        mask[top:bottom, left:right] = ink > 0.5
        for other in masks:  # what is drawn later lies on top
            other &= ~mask
        boxes.append(box)
        masks.append(mask)
        labels.append(label)
    return np.rint(picture).clip(0, 255).astype(np.uint8), masks, labels


def stroke(digit: Image, rng: np.random.Generator) -> NDArray[np.float64]:
    """A digit at a random size, a little turned: the share of ink of every pixel, cut to the ink.

    Args:
        digit: uint8 of shape (8, 8).
        rng: For size and angle.
    """
    low, high = HEIGHTS
    height = math.exp(rng.uniform(math.log(low), math.log(high)))
    scale = height / 8
    side = math.ceil(height * 1.5)
    turn = cv2.getRotationMatrix2D((3.5, 3.5), rng.uniform(-12, 12), scale)
    turn[:, 2] += side / 2 - 3.5
    grey = cv2.warpAffine(digit.astype(np.float64), turn, (side, side), flags=cv2.INTER_CUBIC)
    ink = ((grey / 255 - 0.3) / 0.3).clip(0, 1)  # an edge of about a sixth of the stroke's width
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def texture(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Ground darker than the ink: clouds of three sizes, and stripes across them.

    Args:
        shape: Height and width.
        rng: For what it looks like.

    Returns:
        Values of shape (height, width, 3).
    """
    height, width = shape
    ground = np.full((height, width, 3), rng.uniform(30, 90)) + rng.uniform(-15, 15, 3)
    for cells, strength in ((3, 25), (9, 18), (40, 14)):
        clouds = rng.uniform(-strength, strength, (cells, cells, 3))
        ground += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    angle, period = rng.uniform(0, math.pi), rng.uniform(5, 24)
    y, x = np.mgrid[:height, :width]
    along = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
    ground += rng.uniform(0, 22) * np.sin(along)[..., None]
    return ground.clip(0, 150)


def _endless(split: str, rng: np.random.Generator) -> Iterator[tuple[Image, int]]:
    """The digits of a split in random order, all of them before one comes again."""
    found = Digits(split=split, channels=1).load_data_list()
    while True:
        for i in rng.permutation(len(found)):
            yield found[i]['img'][..., 0], found[i]['gt_label']


def _place(
    size: Sequence[int],
    shape: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
    rng: np.random.Generator,
) -> tuple[int, int, int, int] | None:
    """Top, left, bottom and right where a digit does not cover much of another."""
    height, width = size
    for _ in range(50):
        top = int(rng.integers(0, shape[0] - height + 1))
        left = int(rng.integers(0, shape[1] - width + 1))
        box = (top, left, top + height, left + width)
        if all(_shared(box, other) <= OVERLAP for other in taken):
            return box
    return None


def _shared(first: Sequence[int], second: Sequence[int]) -> float:
    """The part of the smaller of two boxes that the other covers."""
    height = min(first[2], second[2]) - max(first[0], second[0])
    width = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return max(height, 0) * max(width, 0) / min(areas)


def _annotation(mask: NDArray[np.bool_], label: int) -> dict[str, Any]:
    """Box, area and mask of a digit. Run lengths, as polygons have no holes and a zero has one."""
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(
        category_id=label + 1,
        bbox=rle.toBbox(encoded).tolist(),
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(size=encoded['size'], counts=encoded['counts'].decode('ascii')),
    )


def main() -> None:
    """Reads the flags and writes the data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', required=True, type=Path, help='folder of the data set')
    parser.add_argument('--train', type=int, default=400, help='scenes for training')
    parser.add_argument('--val', type=int, default=100, help='scenes for validation')
    parser.add_argument('--seed', type=int, default=0, help='other scenes')
    args = parser.parse_args()
    write_data_set(args.out, {'train': args.train, 'val': args.val}, args.seed)
    MMLogger.get_instance('mmstp').info(
        f'{args.train} scenes for training and {args.val} for validation are in {args.out}: '
        'COCO\'s layout, for mmdet\'s CocoDataset with metainfo=dict(classes=("0", …, "9"))'
    )


if __name__ == '__main__':
    main()
