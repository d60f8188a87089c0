"""What a classifier's head gives: its own loss, and the logits that it predicts by."""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..analysis.eval_state import eval_mode
from ..analysis.scratch import copied
from ..errors import ModelError
from ..foreign import pytree
from ..subnets.supernet import Supernet


def losses_and_logits(
    classifier: Any, once_more: AbstractContextManager[Any], inputs: Tensor, data_samples: list[Any]
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses that the classifier itself computes, and its logits, in one pass.

    The logits are those that the head predicts by. Where its loss takes others (a margin on the
    right class), the head is asked once more.

    Args:
        classifier: One of mmpretrain.
        once_more: What the head is asked again in: an active subnet does not count a batch that its
            norms have seen already.
        inputs: Images of shape (batch, channels, height, width).
        data_samples: Their labels.

    Returns:
        The losses by name, and logits of shape (batch, classes).

    Raises:
        ModelError: If the head gives no such logits.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    handle = classifier.head.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    try:
        losses = dict(classifier(inputs, data_samples, mode='loss'))
    finally:
        handle.remove()
    plain = [output for args, kwargs, output in calls if len(args) == 1 and not kwargs]
    if len(plain) == len(calls) == 1:
        logits = plain[0]
    else:
        with once_more:
            logits = classifier.head(calls[0][0][0]) if calls else classifier(inputs)
    return losses, checked_logits(classifier, logits)


def checked_logits(classifier: Any, logits: Any) -> Tensor:
    """The logits, if the distillation can compare them; else a `ModelError` that names the head."""
    if isinstance(logits, Tensor) and logits.dim() == 2:
        return logits
    found = (
        f'a tensor of shape {tuple(logits.shape)}'
        if isinstance(logits, Tensor)
        else (f'a {type(logits).__name__}')
    )
    raise ModelError(
        f'{type(getattr(classifier, "head", None)).__name__}, the head of the classifier, gives '
        f'{found}, not logits of shape (batch, classes), which the distillation compares. Heads '
        'for one task with one classifier are accepted'
    )


def read_head(supernet: Supernet) -> Prediction:
    """Looks at the head of a classifier before it is trained.

    Raises:
        ModelError: If it gives no logits to distil, cannot be trained, or is no classifier's.
    """
    classifier: Any = supernet.model
    feats: list[Any] = []
    handle = classifier.head.register_forward_pre_hook(lambda _, args: feats.extend(args[:1]))
    try:
        with eval_mode(classifier), torch.no_grad():
            logits = checked_logits(classifier, classifier(*supernet.inputs))
    finally:
        handle.remove()
    if feats:
        _refuse_untrainable(classifier.head, feats[0])
    return Prediction(classifier.head, logits.shape[1])


def _refuse_untrainable(head: nn.Module, feats: Any) -> None:
    """Raises for a head that says it cannot be trained, as those made for distillation do.

    A copy is asked for the loss of no labels: what else it makes of them says nothing.

    Raises:
        ModelError: Naming the head, with what it says.
    """
    trial: Any = copied(head).train()
    two = pytree.tree_map_only(Tensor, lambda x: torch.cat([x, x]), feats)  # norms want several
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            trial.loss(two, [])
        except NotImplementedError as error:
            raise ModelError(f'{type(head).__name__} cannot be trained: {error}') from error
        except Exception:
            return


class Prediction:
    """Whether a head predicts one class of several, or each class as a yes or no of its own.

    Its loss tells. Hooks may put another loss in its place, so it is asked again then.
    """

    def __init__(self, head: nn.Module, classes: int) -> None:
        self.head, self._classes = head, classes
        self._loss: Any = None
        self._per_label = self.per_label
        if classes == 1 and not self._per_label:
            raise ModelError(
                f'{type(head).__name__} gives one logit an image, of which a softmax is always 1: '
                'there is nothing to distil. Take two classes, or a loss of sigmoids '
                '(use_sigmoid=True)'
            )

    @property
    def per_label(self) -> bool:
        """Whether each class is a yes or no of its own (sigmoids)."""
        loss = getattr(self.head, 'loss_module', None)
        if loss is not self._loss or loss is None:
            self._per_label = _sees_levels(self.head, loss, self._classes)
            self._loss = loss
        return self._per_label


@torch.no_grad()
def _sees_levels(head: nn.Module, loss: Any, classes: int) -> bool:
    """Whether a loss changes when all logits rise by the same: a softmax does not see that.

    Raises:
        ModelError: If it stays when the targets rise as well: a regression, not a classifier.
    """
    generator = torch.Generator().manual_seed(0)
    images = classes + 1  # so that targets of one form do not pass for the other
    logits = torch.randn(images, classes, generator=generator)
    index = torch.arange(images) % classes
    for targets in (index, F.one_hot(index, classes).float()):
        value = _value(loss, logits, targets)
        if value is None:
            continue
        if _same(_value(loss, logits + 3, targets), value):
            return False
        if _same(_value(loss, logits + 3, targets + 3.0), value):
            raise ModelError(
                f'{type(head).__name__} has a loss of regression ({type(loss).__name__}); STP '
                'distils the probabilities of a classifier'
            )
        return True
    # a loss that takes neither form of labels, or a head without one: the base class tells
    return any(kind.__name__ == 'MultiLabelClsHead' for kind in type(head).__mro__)


def _value(loss: Any, logits: Tensor, targets: Tensor) -> Tensor | None:
    """A loss of these, None where it takes no such targets; on a copy, as it may count classes."""
    for options in ({'avg_factor': len(logits)}, {}):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                found: Tensor = copy.deepcopy(loss).cpu()(logits, targets, **options).sum()
                return found
        except Exception:
            continue
    return None


def _same(value: Tensor | None, other: Tensor) -> bool:
    return value is not None and bool((value - other).abs() <= 1e-4 * other.abs() + 1e-12)
