"""Classes that do not belong together and images of another size stop a run before it starts."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mmstp.analysis.scratch import random_state_kept
from mmstp.cli.data_checks import check_input_shape, check_pretrained
from mmstp.cli.launch import load_config
from mmstp.datasets.labels import check_labels
from mmstp.errors import LaunchError

CLASSES = ('ant', 'bee', 'cat')


def write_images(root, **parts):
    """Folders of two images for each class, by part of the data."""
    for part, classes in parts.items():
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(2):
                pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')


@pytest.fixture
def config(tiny_config, tmp_path):
    """The tiny config on folders of images."""
    cfg = load_config(str(tiny_config))
    load = dict(type='LoadImageFromFile')
    for part in ('train', 'val'):
        field = cfg[f'{part}_dataloader']
        pipeline = [load, *field.dataset.pipeline]
        field.dataset = dict(
            type='CustomDataset', data_root=str(tmp_path), data_prefix=part, pipeline=pipeline
        )
        field.batch_size, field.num_workers = 2, 0
    cfg.train_dataloader.persistent_workers = False
    cfg.model.model.head.num_classes = cfg.data_preprocessor.num_classes = 3
    cfg.dump(tmp_path / 'folders.py')
    return tmp_path / 'folders.py'


@pytest.mark.parametrize(
    ('train', 'val', 'message'),
    [
        (('ant', 'cat'), CLASSES, r"are not those of train_dataloader\.dataset.*lacks 'bee'"),
        (CLASSES, ('ant', 'bee'), r"val_dataloader\.dataset are not .*lacks 'cat'"),
        (('ant', 'bee', 'cow'), CLASSES, r"train_dataloader\.dataset lacks 'cat'"),
        ((*CLASSES, 'dog'), (*CLASSES, 'dog'), r'train_dataloader\.dataset has 4 classes, model'
         r'\.model\.head\.num_classes = 3; set num_classes=4'),
        (('ant',), ('ant',), r"images of 'ant' alone: there is nothing to tell apart"),
    ],
)  # fmt: skip
def test_classes_that_do_not_belong_together(train, val, message, call, config, tmp_path):
    write_images(tmp_path, train=train, val=val)
    with pytest.raises(LaunchError, match=message):
        call('train.py', config, '--work-dir', tmp_path / 'run')
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_folders_that_do_are_trained(call, config, tmp_path):
    write_images(tmp_path, train=CLASSES, val=CLASSES)
    call('train.py', config, '--work-dir', tmp_path / 'run', '--cfg-options',
         'train_cfg.max_epochs=1', 'custom_hooks.1.num_images=4')  # fmt: skip
    assert (tmp_path / 'run/epoch_1.pth').is_file()


def test_input_shape_is_that_of_the_images(call, tiny_config, tmp_path):
    with pytest.raises(
        LaunchError,
        match=r'model\.input_shape = \(3, 32, 32\), but the images .*: \(3, 16, 16\) in train_da',
    ):
        call('train.py', tiny_config, '--work-dir', tmp_path, '--cfg-options',
             'model.input_shape=(3,32,32)')  # fmt: skip


def test_one_of_the_sizes_is_enough():
    """Training and validation may have different ones."""
    check_input_shape((3, 8, 8), {'train': (3, 6, 6), 'val': (3, 8, 8)})
    check_input_shape((3, 8, 8), {})
    with pytest.raises(LaunchError, match=r'\(3, 6, 6\) in train, \(3, 7, 7\) in val'):
        check_input_shape((3, 8, 8), {'train': (3, 6, 6), 'val': (3, 7, 7)})


def test_random_numbers_of_the_run_are_kept():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with random_state_kept():
        draw()
    assert draw() == expected


class Data:
    """A data set of some labels."""

    def __init__(self, labels, classes=None):
        self.labels, self.metainfo = np.array(labels), {'classes': classes} if classes else {}

    def get_gt_labels(self):
        return self.labels

    def __len__(self):
        return len(self.labels)


class Wrapper:
    def __init__(self, dataset):
        self.dataset, self.metainfo = dataset, dataset.metainfo

    def __len__(self):
        return 2 * len(self.dataset)


def test_pretrained_classes_in_another_order(tmp_path):
    """Others are taken, they may have been renamed."""
    path = str(tmp_path / 'pretrained.pth')
    data = {'train': Data([0, 1], ('ant', 'bee')), 'val': Data([0, 1])}
    for classes in (('ant', 'bee'), ('ant', 'wasp'), None):
        torch.save({'state_dict': {}, 'meta': {'dataset_meta': {'classes': classes}}}, path)
        check_pretrained(path, data)
    check_pretrained(None, data)
    torch.save({'state_dict': {}, 'meta': {'dataset_meta': {'classes': ['bee', 'ant']}}}, path)
    with pytest.raises(LaunchError, match=r'classes of train in another order \(bee, ant, …, not'):
        check_pretrained(path, data)


def test_labels_without_names():
    check_labels({'train': Data([0, 1, 2]), 'val': Data([0, 1])}, 3)
    check_labels({'train': Data([0, 1, 2]), 'val': Data([])}, None)
    with pytest.raises(LaunchError, match=r'val has 6 classes, model\.head\.num_classes = 3'):
        check_labels({'train': Data([0, 1, 2]), 'val': Data([5])}, 3)
    with pytest.raises(LaunchError, match='train has images of one class alone'):
        check_labels({'train': Data([1, 1])}, 3)


def test_wrappers_have_the_classes_of_what_they_wrap():
    train = Wrapper(Data([0, 1], ('a', 'b')))
    check_labels({'train': train, 'val': Data([0, 1], ('a', 'b'))}, 2)
    with pytest.raises(LaunchError, match='the same in another order'):
        check_labels({'train': train, 'val': Data([0, 1], ('b', 'a'))}, 2)


def test_data_sets_of_unknown_kind_pass():
    check_labels({'train': [1, 2, 3], 'val': torch.utils.data.TensorDataset(torch.zeros(3))}, 2)
