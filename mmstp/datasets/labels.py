"""Whether the classes of data sets that were built belong together, and fit the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LaunchError

_COUNTED = 100_000  # images up to which all labels are looked at; reading them takes a second


def check_same_classes(datasets: Mapping[str, Any]) -> None:
    """Whether data sets number the same classes alike.

    Args:
        datasets: Built ones by the field of the config that names them, the training's first.

    Raises:
        LaunchError: If not.
    """
    first, known = '', None
    for field, dataset in datasets.items():
        classes = classes_of(dataset)
        if known is None:
            first, known = field, classes
        elif classes is not None and classes != known:
            raise LaunchError(
                f'the classes of {field} are not those of {first}, so their labels are numbered '
                f'differently: {_difference(first, known, field, classes)}. Both need the same '
                'class folders or the same metainfo.classes'
            )


def check_labels(
    datasets: Mapping[str, Any], num_classes: int | None, classifier: str = 'model'
) -> None:
    """Compares the classes of data sets with each other and with the head's.

    Args:
        datasets: As in `check_same_classes`.
        num_classes: Logits of the head; None where that is not known.
        classifier: Its field in the config, for messages.

    Raises:
        LaunchError: If the classes differ, are more than the head has, or are one alone.
    """
    check_same_classes(datasets)
    first = next(iter(datasets), '')
    for field, dataset in datasets.items():
        classes, labels = classes_of(dataset), _labels(dataset)
        number = max(len(classes or ()), max(labels, default=-1) + 1)
        if num_classes is not None and number > num_classes:
            raise LaunchError(
                f'{field} has {number} classes, {classifier}.head.num_classes = {num_classes}; set '
                f'num_classes={number} in the head and in data_preprocessor'
            )
        if num_classes == 1 or (field == first and (number == 1 or len(labels) == 1)):
            alone = repr(classes[0]) if classes and len(classes) == 1 else 'one class'
            raise LaunchError(
                f'{field} has images of {alone} alone: there is nothing to tell apart, and the '
                'distillation of one logit is 0. Two classes are the least'
            )


def innermost(dataset: Any) -> Any:
    """The data set inside wrappers, which share its classes."""
    while not hasattr(dataset, 'get_gt_labels'):
        several = getattr(dataset, 'datasets', None) or [None]
        inner = getattr(dataset, 'dataset', several[0])
        if inner is None:
            break
        dataset = inner
    return dataset


def classes_of(dataset: Any) -> tuple[str, ...] | None:
    """The classes in the order of their labels; folders, where labels follow from these."""
    folders = getattr(innermost(dataset), 'folder_to_idx', None)
    found = folders or (getattr(dataset, 'metainfo', None) or {}).get('classes')
    return tuple(map(str, found)) if found else None


def _labels(dataset: Any) -> set[int]:
    """All labels that occur; none where they are too many to look at, or several per image."""
    leaf = innermost(dataset)
    if not hasattr(leaf, 'get_gt_labels') or len(dataset) > _COUNTED or leaf is not dataset:
        return set()
    try:
        return set(leaf.get_gt_labels().tolist())
    except (TypeError, ValueError, KeyError):  # lists of labels, or none
        return set()


def _difference(first: str, known: Any, field: str, classes: tuple[str, ...]) -> str:
    for one, names, other in ((first, known, classes), (field, classes, known)):
        missing = sorted(set(other) - set(names))
        if missing:
            return f'{one} lacks {", ".join(map(repr, missing[:5]))}'
    return 'they are the same in another order'
