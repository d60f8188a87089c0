"""Digits against scikit-learn, and its split."""

import sys

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS
from sklearn.datasets import load_digits

from mmstp.datasets.sklearn_digits import Digits


def images_of(dataset: Digits) -> np.ndarray:
    return np.stack([dataset[i]['img'] for i in range(len(dataset))])


def test_the_two_splits_are_all_images_once():
    train, test = Digits(split='train'), Digits(split='test')
    ours = np.concatenate([images_of(train), images_of(test)])[..., 0]
    theirs = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    as_rows = [sorted(map(bytes, images)) for images in (ours, theirs)]
    assert as_rows[0] == as_rows[1]


def test_split_is_stratified_and_fixed():
    train, test = Digits(split='train').get_gt_labels(), Digits(split='test').get_gt_labels()
    share = np.bincount(test) / (np.bincount(test) + np.bincount(train))
    assert len(share) == 10
    assert np.abs(share - 0.25).max() < 0.01
    assert np.array_equal(test, Digits(split='test').get_gt_labels())


def test_labels_are_those_of_scikit_learn():
    digits, test = load_digits(), Digits(split='test', channels=1)
    label_of = {
        bytes(np.rint(image * 255 / 16).astype(np.uint8)): int(label)
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    assert [label_of[bytes(i)] for i in images_of(test)] == test.get_gt_labels().tolist()


def test_images_are_uint8_and_use_the_full_range():
    images = images_of(Digits())
    assert images.shape[1:] == (8, 8, 3)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert (images == images[..., :1]).all()
    assert np.array_equal(images[..., :1], images_of(Digits(channels=1)))


@pytest.mark.parametrize('channels', [1, 3])
def test_works_in_a_pipeline_of_mmpretrain(channels):
    cfg = dict(
        type='mmstp.Digits',
        channels=channels,
        pipeline=[dict(type='Resize', scale=16), dict(type='PackInputs')],
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = MMPRETRAIN_DATASETS.build(cfg)
    item = dataset[3]
    assert item['inputs'].shape == (channels, 16, 16)
    assert item['inputs'].dtype == torch.uint8
    assert item['data_samples'].gt_label.item() == dataset.get_gt_labels()[3]
    assert ''.join(dataset.CLASSES) == '0123456789'


@pytest.mark.parametrize(
    ('kwargs', 'words'),
    [
        ({'split': 'val'}, ['Digits.split', "'train'", "'test'", "'val'"]),
        ({'channels': 2}, ['Digits.channels', '1 or 3', '2']),
    ],
)
def test_errors_name_argument_value_and_what_is_accepted(kwargs, words):
    with pytest.raises(ValueError) as error:
        Digits(**kwargs)
    assert all(word in str(error.value) for word in words)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)  # makes the import fail
    with pytest.raises(ImportError, match='pip install scikit-learn'):
        Digits()
