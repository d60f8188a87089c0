"""Datasets that mmpretrain does not have, and a check that the configured ones are there."""

from mmstp.datasets.check import check_datasets
from mmstp.datasets.sklearn_digits import Digits
from mmstp.datasets.tiny_imagenet import TinyImageNet

__all__ = ['Digits', 'TinyImageNet', 'check_datasets']
