"""Fashion-MNIST's configs read its files; here a few images in the same format."""

from pathlib import Path

import mmpretrain.datasets  # noqa: F401  registers FashionMNIST
import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS

from mmstp.datasets.check import check_datasets

# mmpretrain reads the labels into memory that it does not own
pytestmark = pytest.mark.filterwarnings('ignore:The given NumPy array is not writable')

CONFIG = Path(__file__).parents[2] / 'configs/stp/r18_fashion_mnist_35pct.py'


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of the MNIST files: a magic number, the shape, the bytes."""
    head = np.array([0x0800 + values.ndim, *values.shape], '>u4')
    path.write_bytes(head.tobytes() + values.astype('u1').tobytes())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (('train', 12), ('t10k', 5)):
        write_idx(tmp_path / f'{part}-images-idx3-ubyte', rng.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f'{part}-labels-idx1-ubyte', np.arange(count) % 10)
    return tmp_path


def config(root: Path) -> Config:
    cfg = Config.fromfile(CONFIG)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].dataset.data_root = str(root)
    return cfg


def test_training_and_test_images_are_those_of_their_files(root):
    cfg = config(root)
    check_datasets(cfg)
    for name, part in (('train_dataloader', 'train'), ('test_dataloader', 't10k')):
        images = np.fromfile(root / f'{part}-images-idx3-ubyte', 'u1')[16:].reshape(-1, 28, 28)
        pipeline = [dict(type='PackInputs')]
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build({**cfg[name].dataset, 'pipeline': pipeline})
        assert len(dataset) == len(images)
        for index, image in enumerate(images):
            sample = dataset[index]
            assert (sample['inputs'][0].numpy() == image).all()
            assert sample['data_samples'].gt_label.item() == index % 10


def test_batch_is_of_the_shape_that_the_network_takes(root):
    cfg = config(root)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
    assert tuple(batch['inputs'].shape) == (12, *cfg.model.input_shape)


@pytest.mark.parametrize('part', ['train-images-idx3-ubyte', 't10k-labels-idx1-ubyte'])
def test_missing_file_is_named_with_where_to_get_it(root, part):
    (root / part).unlink()
    with pytest.raises(FileNotFoundError, match=rf'{part}.*dataset-fashion-mnist'):
        check_datasets(config(root))
