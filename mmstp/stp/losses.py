"""The distillation loss of stimulative training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZATIONS = ('layer_norm', 'l2', 'none')
# Added to the variance. An untrained head's logits are near 0: made as large as a trained one's,
# their gradients would be as many times larger, and the first steps put out the channels that all
# subnets share (decision 0063).
FLOOR = 1.0


def normalized_kl(
    student_logits: Tensor, teacher_logits: Tensor, normalize: str = 'layer_norm'
) -> Tensor:
    """KL divergence from teacher to student between normalised logits (Eq. 4 and 5).

    Both are normalised over the classes, so the loss does not change when logits that are large
    are scaled by a positive number. The teacher gets no gradient. Computed in float32 whatever the
    inputs are.

    Args:
        student_logits: Shape (batch, classes).
        teacher_logits: Shape (batch, classes).
        normalize: ``'layer_norm'``: zero mean and unit variance over the classes, as in the
            authors' earlier code, with `FLOOR` added to the variance; ``'l2'``: unit L2 norm, Eq. 5
            as printed, whose gradients are hundreds of times smaller; ``'none'``: the plain logits.

    Returns:
        A scalar: the sum over the classes, the mean over the batch.

    Raises:
        ValueError: If ``normalize`` is none of these.

    References:
        Tang et al., *Enhanced Sparsification via Stimulative Training*, ECCV 2024, Eq. 4 and 5.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student = _normalize(student_logits.float(), normalize)
        teacher = _normalize(teacher_logits.detach().float(), normalize)
        return F.kl_div(
            F.log_softmax(student, dim=1),
            F.log_softmax(teacher, dim=1),
            reduction='batchmean',
            log_target=True,
        )


def label_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL divergence from teacher to student, each class a yes or no of its own.

    The probabilities are sigmoids, which depend on the level of the logits: nothing is normalised.
    The paper has no such classifiers; this is Eq. 4 with the distribution that they predict.

    Args:
        student_logits: Shape (batch, classes).
        teacher_logits: Shape (batch, classes); gets no gradient.

    Returns:
        A scalar: the sum over the classes, the mean over the batch.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = student_logits.float(), teacher_logits.detach().float()
        yes = F.logsigmoid(teacher) - F.logsigmoid(student)
        no = F.logsigmoid(-teacher) - F.logsigmoid(-student)
        share = teacher.sigmoid()
        return (share * yes + (1 - share) * no).sum(dim=1).mean()


def _normalize(logits: Tensor, normalize: str) -> Tensor:
    if normalize == 'layer_norm':
        return F.layer_norm(logits, logits.shape[1:], eps=FLOOR)
    if normalize == 'l2':
        return F.normalize(logits, dim=1)
    if normalize == 'none':
        return logits
    raise ValueError(f'normalize={normalize!r}: expected one of {NORMALIZATIONS}')
