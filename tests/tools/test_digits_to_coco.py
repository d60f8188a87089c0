"""Scenes with digits: COCO's format, the same every time, nothing of the test split in training."""

import json
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmstp import Digits
from tests.tools.conftest import TOOLS


@pytest.fixture(scope='module')
def converter():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        import dataset_converters.digits_to_coco as module

        yield module
    sys.modules.pop('dataset_converters.digits_to_coco')


@pytest.fixture(scope='module')
def folder(converter, tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    converter.write_data_set(folder, {'train': 12, 'val': 6})
    return folder


def coco(folder, part='train'):
    return COCO(folder / f'annotations/instances_{part}2017.json')


@pytest.mark.parametrize(('part', 'count'), [('train', 12), ('val', 6)])
def test_pycocotools_reads_it(folder, part, count):
    found = coco(folder, part)
    assert [image['id'] for image in found.loadImgs(found.getImgIds())] == [*range(1, count + 1)]
    assert [c['name'] for c in found.loadCats(found.getCatIds())] == [str(i) for i in range(10)]
    ids = found.getAnnIds()
    assert ids == [*range(1, len(ids) + 1)]
    for image in found.loadImgs(found.getImgIds()):
        picture = cv2.imread(str(folder / f'{part}2017' / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3)
        assert 1 <= len(found.getAnnIds(image['id'])) <= 6


def test_boxes_and_areas_are_those_of_the_masks(folder):
    found = coco(folder)
    for image in found.getImgIds():
        covered = 0
        for annotation in found.loadAnns(found.getAnnIds(image)):
            mask = found.annToMask(annotation).astype(bool)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y, width, height = annotation['bbox']
            assert (x, y) == (columns[0], rows[0])
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert annotation['area'] == mask.sum() > 0
            covered = covered + mask.astype(int)
        assert np.max(covered) == 1  # of two that overlap, one lies on top


def test_digits_have_several_sizes_and_are_lighter_than_the_ground(folder):
    found = coco(folder)
    heights = []
    for image in found.loadImgs(found.getImgIds()):
        picture = cv2.imread(str(folder / 'train2017' / image['file_name'])).mean(2)
        masks = [found.annToMask(a) > 0 for a in found.loadAnns(found.getAnnIds(image['id']))]
        ink = np.any(masks, axis=0)
        assert picture[ink].mean() > picture[~ink].mean() + 40
        assert picture[~ink].std() > 3  # a texture
        heights += [np.ptp(np.flatnonzero(mask.any(1))) + 1 for mask in masks]
    assert min(heights) < 25 < 45 < max(heights)


def test_zeros_have_a_hole(converter):
    zero = next(d['img'][..., 0] for d in Digits().load_data_list() if d['gt_label'] == 0)
    ink = converter.stroke(zero, np.random.default_rng(0)) > 0.5
    middle = ink[ink.shape[0] // 2]
    assert middle.any() and not middle[len(middle) // 2]


def test_the_same_every_time_and_another_with_another_seed(converter, folder, tmp_path):
    converter.write_data_set(tmp_path / 'a', {'train': 3})
    converter.write_data_set(tmp_path / 'b', {'train': 3}, seed=1)
    for number in (1, 2, 3):
        name = f'train2017/{number:06d}.png'
        assert (tmp_path / 'a' / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / 'b' / name).read_bytes() != (folder / name).read_bytes()
    first = json.loads((folder / 'annotations/instances_train2017.json').read_text())
    again = json.loads((tmp_path / 'a/annotations/instances_train2017.json').read_text())
    assert again['annotations'] == first['annotations'][: len(again['annotations'])]


@pytest.mark.parametrize('part', ['train', 'val'])
def test_scenes_show_digits_of_their_split(converter, part, monkeypatch):
    shown = []
    stroke = converter.stroke
    monkeypatch.setattr(
        converter, 'stroke', lambda digit, rng: (shown.append(digit), stroke(digit, rng))[1]
    )
    rng = np.random.default_rng(0)
    digits = converter._endless(converter.SPLITS[part], rng)
    for _ in range(5):
        converter.compose((128, 128), digits, rng)
    own = Digits(split={'train': 'train', 'val': 'test'}[part]).load_data_list()
    other = Digits(split={'train': 'test', 'val': 'train'}[part]).load_data_list()
    known = {d['img'][..., 0].tobytes() for d in own}
    assert {digit.tobytes() for digit in shown} <= known - {
        d['img'][..., 0].tobytes() for d in other
    }


@pytest.mark.parametrize(
    ('scenes', 'message'),
    [({'train': 0}, '0 scenes for train'), ({'test': 3}, "part 'test' of the data set: expected")],
)
def test_errors(converter, scenes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        converter.write_data_set(tmp_path, scenes)
    assert not list(tmp_path.iterdir())
