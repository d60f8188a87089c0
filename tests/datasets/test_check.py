"""What check_datasets accepts, and what its messages say."""

from pathlib import Path

import pytest
from mmengine import Config

from mmstp.datasets.check import check_datasets
from mmstp.datasets.sklearn_digits import Digits


def config(dataset: dict, dataloader: str = 'train_dataloader') -> Config:
    return Config({dataloader: dict(batch_size=2, dataset=dataset)})


def refusal(cfg: Config) -> str:
    with pytest.raises(FileNotFoundError) as error:
        check_datasets(cfg)
    return str(error.value)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('x')


@pytest.mark.parametrize('dataloader', ['train_dataloader', 'val_dataloader', 'test_dataloader'])
def test_missing_root_in_every_dataloader(dataloader, tmp_path):
    root = tmp_path / 'nowhere'
    dataset = dict(type='ImageNet', data_root=str(root), split='train')
    message = refusal(config(dataset, dataloader))
    assert message.startswith(f'{dataloader}.dataset.data_root = {str(root)!r}')
    assert 'does not exist' in message
    assert 'train/<class id>/*.JPEG' in message


def test_relative_root_is_shown_as_written_and_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(config(dict(type='ImageNet', data_root='data/imagenet', split='val')))
    assert "'data/imagenet'" in message
    assert repr(str(tmp_path / 'data/imagenet')) in message


def test_empty_root(tmp_path):
    assert 'is an empty folder' in refusal(config(dict(type='Anything', data_root=str(tmp_path))))


@pytest.mark.parametrize(
    ('wrapped', 'field'),
    [
        (lambda d: dict(type='RepeatDataset', times=2, dataset=d), 'dataset.dataset'),
        (
            lambda d: dict(type='ConcatDataset', datasets=[dict(type='mmstp.Digits'), d]),
            'dataset.datasets.1',
        ),
        (
            lambda d: dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[d])),
            'dataset.dataset.datasets.0',
        ),
    ],
)
def test_wrappers_are_looked_through(wrapped, field, tmp_path):
    dataset = dict(type='ImageNet', data_root=str(tmp_path / 'nowhere'), split='train')
    assert refusal(config(wrapped(dataset))).startswith(f'train_dataloader.{field}.data_root = ')


def test_cifar100_says_which_archive(tmp_path):
    touch(tmp_path / 'cifar-100-python.tar.gz')  # there, but not unpacked
    cfg = config(dict(type='CIFAR100', data_root=str(tmp_path), split='test', download=False))
    message = refusal(cfg)
    assert message.startswith('train_dataloader.dataset.data_root')
    assert 'the unpacked cifar-100-python.tar.gz: cifar-100-python/' in message
    for name in ('train', 'test'):
        touch(tmp_path / 'cifar-100-python' / name)
    check_datasets(cfg)


def test_cifar100_that_may_be_downloaded_passes(tmp_path):
    root = str(tmp_path / 'nowhere')
    check_datasets(config(dict(type='CIFAR100', data_root=root, download=True)))
    assert root in refusal(config(dict(type='CIFAR100', data_root=root)))  # asked for, not implied


@pytest.mark.parametrize(
    ('fields', 'field', 'part'),
    [
        (dict(split='val'), 'split', 'val'),
        (dict(data_prefix='images'), 'data_prefix', 'images'),
        (dict(data_prefix=dict(img_path='images')), 'data_prefix.img_path', 'images'),
        (dict(ann_file='meta/val.txt'), 'ann_file', 'meta/val.txt'),
        (
            dict(split='val', ann_file='meta/val.txt', data_prefix='train'),
            'ann_file',
            'meta/val.txt',
        ),
    ],
)
def test_missing_part_of_imagenet(fields, field, part, tmp_path):
    touch(tmp_path / 'train/n01440764/a.JPEG')
    cfg = config(dict(type='mmpretrain.ImageNet', data_root=str(tmp_path), **fields))
    message = refusal(cfg)
    assert message.startswith(f'train_dataloader.dataset.{field} = ')
    assert repr(str(tmp_path / part)) in message
    touch(tmp_path / part if part.endswith('.txt') else tmp_path / part / 'a.JPEG')
    check_datasets(cfg)


def test_absolute_part_needs_no_root(tmp_path):
    dataset = dict(type='CustomDataset', data_prefix=str(tmp_path / 'images'))
    assert repr(str(tmp_path / 'images')) in refusal(config(dataset))
    touch(tmp_path / 'images/a.png')
    check_datasets(config(dataset))


def test_detection_dataset(tmp_path):
    touch(tmp_path / 'annotations/instances_train2017.json')
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
    )
    message = refusal(config(dataset))
    assert message.startswith("train_dataloader.dataset.data_prefix.img = 'train2017/'")
    assert 'annotations/instances_{train,val}2017.json' in message


@pytest.mark.parametrize('split', ['train', 'val'])
def test_tiny_imagenet(split, tmp_path):
    for part in ('wnids.txt', 'words.txt'):
        touch(tmp_path / part)
    cfg = config(dict(type='mmstp.TinyImageNet', data_root=str(tmp_path), split=split))
    assert 'tiny-imagenet-200.zip' in refusal(cfg)
    parts = ('train/n1/images/a.JPEG', 'val/images/a.JPEG', 'val/val_annotations.txt')
    for part in parts:
        if part.startswith(split):
            touch(tmp_path / part)
    check_datasets(cfg)


def test_what_has_no_local_path_passes():
    check_datasets(config(dict(type='mmstp.Digits', split='train')))
    check_datasets(config(dict(type=Digits, split='train')))  # a class, as in pure Python configs
    check_datasets(config(dict(type='ImageNet', data_root='s3://bucket/imagenet', split='train')))
    check_datasets(Config(dict(train_dataloader=None, model=dict(type='X'))))
