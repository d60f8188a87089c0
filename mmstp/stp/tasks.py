"""What differs between tasks: what a network is compared by, and what its own losses are.

`STP` asks a `Task` for all of it. A task of one's own is a class with these methods, registered in
`mmstp.registry.TASKS` and named in ``model.task``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..errors import FieldError, ModelError, TraceError
from ..registry import TASKS
from ..subnets.supernet import Supernet
from .heads import checked_logits, losses_and_logits, read_head
from .losses import label_kl, normalized_kl


class Task(Protocol):
    """How two networks of a task are compared on a batch.

    Args:
        supernet: The network and its subnets.
        normalize: Of `STP`; for tasks that compare logits of classes.

    It may have an attribute ``needs_target_ce``: what of the network is not compared, and why.
    """

    def __init__(self, supernet: Supernet, normalize: str) -> None: ...

    @staticmethod
    def prepare(model: nn.Module) -> dict[str, Any]:
        """Readies a model to be traced.

        Returns:
            Options of `SearchSpace` that a config need not name: ``parts``, ``times``.

        Raises:
            ModelError: If it is no model of the task.
        TraceError: If it cannot be traced.
        """

    def follow(self, model: nn.Module) -> None:
        """From here on it is ``model`` that is trained, the survivor; of several the largest."""

    def tensors(self, model: Any, inputs: Tensor) -> Any:
        """All that the model's layers give for images, as far as a trace can follow."""

    def outputs(self, model: Any, inputs: Tensor, data_samples: list[Any]) -> Any:
        """What networks are compared by, in train or eval mode.

        Args:
            model: The network, which may be a subnet at the moment.
            inputs: Images of shape (batch, channels, height, width).
            data_samples: What is known of them, such as which part of each is padding.
        """

    def losses_and_outputs(
        self,
        model: Any,
        once_more: AbstractContextManager[Any],
        inputs: Tensor,
        data_samples: list[Any],
    ) -> tuple[dict[str, Tensor], Any]:
        """The network's own losses by name, each a scalar, and its `outputs`, in one pass.

        Args:
            model: The network, which may be a subnet at the moment.
            once_more: What a part of it has to be in that is asked a second time.
            inputs: Images of shape (batch, channels, height, width).
            data_samples: What is known of them.
        """

    def distance(self, student: Any, teacher: Any) -> Tensor:
        """How far the outputs of a student are from a teacher's, a scalar; the latter is fixed."""


def warn_of_unlearned(task: Task, target_ce: float) -> None:
    """Says what subnets do not learn where they have no loss of their own."""
    if (reason := getattr(task, 'needs_target_ce', '')) and not target_ce:
        MMLogger.get_instance('mmstp').warning(
            f'model.target_ce={target_ce}: {reason}, so a subnet learns it from its own loss '
            "alone: set target_ce above 0, or preset='recommended', which does"
        )


@TASKS.register_module()
class Classification:
    """Classifiers of mmpretrain: logits, and the divergence of the predicted probabilities.

    Raises:
        ModelError: If the classifier has no head that gives logits of shape (batch, classes).
    """

    def __init__(self, supernet: Supernet, normalize: str) -> None:
        self.prediction = read_head(supernet)
        self.normalize = normalize

    @staticmethod
    def prepare(model: nn.Module) -> dict[str, Any]:
        if not isinstance(getattr(model, 'head', None), nn.Module):
            raise ModelError(f'{type(model).__name__} has no head whose loss STP could take')
        return {}  # heads with hidden layers are stages by their resolution

    def follow(self, model: Any) -> None:
        self.prediction.head = model.head

    def tensors(self, model: Any, inputs: Tensor) -> Any:
        return model(inputs, mode='tensor')

    def outputs(self, model: Any, inputs: Tensor, data_samples: list[Any]) -> Tensor:
        return checked_logits(model, self.tensors(model, inputs))

    def losses_and_outputs(
        self,
        model: Any,
        once_more: AbstractContextManager[Any],
        inputs: Tensor,
        data_samples: list[Any],
    ) -> tuple[dict[str, Tensor], Tensor]:
        losses, logits = losses_and_logits(model, once_more, inputs, data_samples)
        return summed(losses), logits

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.prediction.per_label:
            return label_kl(student, teacher)
        return normalized_kl(student, teacher, self.normalize)


def summed(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Losses as MMEngine adds them up: a list of them, one for each level, is one."""
    return {
        name: torch.stack([one.mean() for one in loss]).sum() if isinstance(loss, list) else loss
        for name, loss in losses.items()
    }


def is_detector(model: object) -> bool:
    """Whether it is a detector of mmdet, which need not be installed."""
    return any(kind.__name__ == 'BaseDetector' for kind in type(model).__mro__)


def with_task(
    model: nn.Module, input_shape: Sequence[int], space: Mapping[str, Any], name: str | None
) -> tuple[Supernet, type[Task]]:
    """A model's supernet, with what its task has widths of its own for, and the task.

    Args:
        model: The model.
        input_shape: Of one image.
        space: Options of `SearchSpace`.
        name: Of the task, in `TASKS`; by default detection for detectors of mmdet, else
            classification.

    Raises:
        FieldError: If there is no task of that name.
        ModelError: If it is no model of the task.
    """
    if name is None:
        name = 'mmstp.Detection' if is_detector(model) else 'mmstp.Classification'
    task: type[Task] | None = TASKS.get(name) if isinstance(name, str) else None
    if task is None:
        raise FieldError(
            f'model.task={name!r}: expected the name of a task that is registered in '
            "mmstp.registry.TASKS, such as 'mmstp.Detection'"
        )
    prepared = task.prepare(model)
    options = {**prepared, **space}
    if isinstance(space.get('times'), Mapping):  # the others are what they were
        options['times'] = {**prepared.get('times', {}), **space['times']}
    try:
        return Supernet(model, torch.zeros(1, *input_shape), **options), task
    except TraceError as error:
        asked = re.search("has no attribute '_?(gt_\\w+)'", str(error))
        if not is_detector(model) or asked is None:
            raise
        raise TraceError(
            f'{error.args[0].rstrip(": ")}. Its forward asks for what is to be found in the images '
            f'({asked[1]}), and a detector is traced with images alone'
        ) from error
