"""TinyImageNet on a small tree in the distributed layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS
from PIL import Image

from mmstp.datasets.tiny_imagenet import TinyImageNet

# Not in alphabetical order, as in the real wnids.txt
WNIDS = ('n02124075', 'n04067472', 'n01443537')
NAMES = ('Egyptian cat', 'reel', 'goldfish, Carassius auratus')


def write_image(path: Path, value: int, mode: str = 'RGB') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (value,) * 3 if mode == 'RGB' else value
    Image.new(mode, (64, 64), colour).save(path, format='JPEG')


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training images per class, the classes' grey level 80 apart, and three for validation."""
    root = tmp_path / 'tiny-imagenet-200'
    for i, wnid in enumerate(WNIDS):
        write_image(root / f'train/{wnid}/images/{wnid}_0.JPEG', 80 * i)
        write_image(root / f'train/{wnid}/images/{wnid}_1.JPEG', 80 * i, mode='L')
        (root / f'train/{wnid}/{wnid}_boxes.txt').write_text(f'{wnid}_0.JPEG\t0\t0\t63\t63\n')
        write_image(root / f'val/images/val_{i}.JPEG', 80 * i)
    write_image(root / 'test/images/test_0.JPEG', 0)
    (root / 'wnids.txt').write_text('\n'.join(WNIDS) + '\n')
    words = [f'{w}\t{n}' for w, n in zip(WNIDS, NAMES, strict=True)]
    (root / 'words.txt').write_text('\n'.join(['n00001740\tentity', *words]) + '\n')
    (root / 'val/val_annotations.txt').write_text(
        ''.join(f'val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n' for i, wnid in enumerate(WNIDS))
    )
    return root


@pytest.mark.parametrize(('split', 'count'), [('train', 6), ('val', 3)])
def test_label_and_image_belong_together(root, split, count):
    cfg = dict(
        type='mmstp.TinyImageNet',
        data_root=str(root),
        split=split,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = MMPRETRAIN_DATASETS.build(cfg)
    assert len(dataset) == count
    for item in dataset:
        name = dataset.CLASSES[item['data_samples'].gt_label.item()]
        assert item['inputs'].shape == (3, 64, 64)  # grey images too
        assert abs(int(item['inputs'].float().mean()) - 80 * NAMES.index(name)) <= 2


def test_splits_share_classes_and_labels_are_alphabetical(root):
    train, val = (TinyImageNet(data_root=str(root), split=split) for split in ('train', 'val'))
    assert train.CLASSES == val.CLASSES
    assert list(train.CLASSES) == [name for _, name in sorted(zip(WNIDS, NAMES, strict=True))]
    assert np.bincount(train.get_gt_labels()).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ('split', 'part'),
    [
        ('train', 'wnids.txt'),
        ('val', 'words.txt'),
        ('train', 'train'),
        ('train', f'train/{WNIDS[1]}/images'),
        ('val', 'val/images'),
        ('val', 'val/val_annotations.txt'),
        ('val', 'val/images/val_1.JPEG'),
    ],
)
def test_what_is_missing_is_named_with_the_layout(root, split, part):
    path = root / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        TinyImageNet(data_root=str(root), split=split)
    assert str(path) in str(error.value)
    assert 'train/<wnid>/images/*.JPEG' in str(error.value)


def test_class_without_images(root):
    folder = root / 'train' / WNIDS[2] / 'images'
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r'no \*\.JPEG in') as error:
        TinyImageNet(data_root=str(root), split='train')
    assert str(folder) in str(error.value)


@pytest.mark.parametrize('line', ['val_9.JPEG\tn99999999\t0\t0\t1\t1', 'val_9.JPEG n02124075'])
def test_annotation_with_an_unknown_class(root, line):
    annotations = root / 'val/val_annotations.txt'
    annotations.write_text(annotations.read_text() + line + '\n')
    with pytest.raises(ValueError) as error:
        TinyImageNet(data_root=str(root), split='val')
    for words in (str(annotations), 'line 4', 'class id of wnids.txt', repr(line)):
        assert words in str(error.value)


def test_class_without_a_name(root):
    (root / 'words.txt').write_text('n00001740\tentity\n')
    with pytest.raises(ValueError, match=r'words\.txt.*n01443537.*wnids\.txt'):
        TinyImageNet(data_root=str(root))


def test_unknown_split(root):
    with pytest.raises(ValueError, match="'train' or 'val', got 'test'"):
        TinyImageNet(data_root=str(root), split='test')
