"""Handwritten digits that come with scikit-learn: real images without a download."""

from collections import Counter
from typing import Any, ClassVar

import numpy as np
from mmpretrain.datasets import BaseDataset

from ..errors import OptionError
from ..registry import DATASETS

_MAX_VALUE = 16  # load_digits gives pixel values 0 to 16
_TEST_EVERY = 4


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 images of 8x8 pixels of ``sklearn.datasets.load_digits``.

    The split is fixed: in the file's order, every fourth image of each digit is for testing. That
    gives 1,352 training and 445 test images, both with all digits in nearly the same proportion.
    The same writers occur in both, so accuracies are above those on unseen writers.

    Images are ``uint8`` of shape ``(8, 8, channels)``, the values 0 to 16 stretched to 0 to 255.

    Args:
        split: ``'train'`` or ``'test'``.
        channels: 1, or 3 for the same image thrice.
        **kwargs: Further arguments of :class:`mmpretrain.datasets.BaseDataset`, such as
            ``pipeline``.

    Raises:
        OptionError: If ``split`` or ``channels`` is none of these.
        ImportError: If scikit-learn is not installed. Raised when the images are read, which is at
            once unless ``lazy_init`` is set.

    References:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998, https://doi.org/10.24432/C50P49 (scikit-learn ships its test part)
    """

    METAINFO: ClassVar[dict] = {'classes': tuple(str(digit) for digit in range(10))}

    def __init__(self, split: str = 'train', channels: int = 3, **kwargs: Any) -> None:
        if split not in ('train', 'test'):
            raise OptionError(f"Digits.split must be 'train' or 'test', got {split!r}")
        if channels not in (1, 3):
            raise OptionError(f'Digits.channels must be 1 or 3, got {channels!r}')
        self.split = split
        self.channels = channels
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict per image: ``img``, uint8 ``(8, 8, channels)``, and ``gt_label``, an int."""
        # Here, not above: the other datasets of the package do not need scikit-learn.
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                'mmstp.Digits reads images that scikit-learn ships: pip install scikit-learn'
            ) from error
        digits = load_digits()
        images = np.rint(digits.images * (255 / _MAX_VALUE)).astype(np.uint8)
        seen: Counter[int] = Counter()
        data_list = []
        for image, label in zip(images, digits.target.tolist(), strict=True):
            seen[label] += 1
            is_test = seen[label] % _TEST_EVERY == 0
            if is_test == (self.split == 'test'):
                img = np.repeat(image[:, :, None], self.channels, axis=2)
                data_list.append(dict(img=img, gt_label=label))
        return data_list

    def extra_repr(self) -> list[str]:
        """Lines for ``repr``."""
        return [f'Split: \t{self.split}']
