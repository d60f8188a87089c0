"""What a classifier's head gives: its own loss, and the logits that it predicts by."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def losses_and_logits(
    classifier: Any, inputs: Tensor, data_samples: list[Any]
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses that the classifier itself computes, and its logits, in one pass.

    The logits are those that the head predicts by. Where its loss takes others (a margin on the
    right class), the head is asked once more.

    Args:
        classifier: A classifier of mmpretrain.
        inputs: Images of shape (batch, channels, height, width).
        data_samples: Their labels.

    Returns:
        The losses by name, and logits of shape (batch, classes).

    Raises:
        TypeError: If the head gives no such logits.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    handle = classifier.head.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    try:
        losses = dict(classifier(inputs, data_samples, mode='loss'))
    finally:
        handle.remove()
    name = type(classifier.head).__name__
    if not calls:
        raise TypeError(f'the loss of {name} does not call the head: its logits are not known')
    args, kwargs, logits = calls[0]
    if len(calls) > 1 or len(args) != 1 or kwargs:
        logits = classifier.head(args[0])
    return losses, checked_logits(classifier, logits)


def checked_logits(classifier: Any, logits: Any) -> Tensor:
    """The logits, if the distillation can compare them; else a `TypeError` that names the head."""
    if isinstance(logits, Tensor) and logits.dim() == 2:
        return logits
    found = (
        f'a tensor of shape {tuple(logits.shape)}'
        if isinstance(logits, Tensor)
        else (f'a {type(logits).__name__}')
    )
    raise TypeError(
        f'{type(getattr(classifier, "head", None)).__name__}, the head of the classifier, gives '
        f'{found}, not logits of shape (batch, classes), which the distillation compares. Heads '
        'for one task with one classifier are accepted'
    )


def is_per_label(head: nn.Module) -> bool:
    """Whether each class is a yes or no of its own (a sigmoid), as with several labels an image."""
    loss: Any = getattr(head, 'loss_module', None)
    sigmoid = getattr(loss, 'use_sigmoid', None) is True or isinstance(
        loss, (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
    )
    # mmpretrain's; by name, as the class is there only where a head of it is
    kinds = {kind.__name__ for kind in (*type(head).__mro__, *type(loss).__mro__)}
    return sigmoid or not kinds.isdisjoint({'MultiLabelClsHead', 'FocalLoss'})
