"""The networks that are measured: classifiers of mmpretrain with random weights, and subnets."""

from __future__ import annotations

from typing import Any

import mmpretrain.models  # noqa: F401  registers the classifiers
import numpy as np
from mmpretrain.registry import MODELS
from torch import nn

from mmstp import Architecture, Supernet
from mmstp.search.budget import Budget, feasible_rows

TOLERANCE = 0.02
BACKBONES: dict[str, tuple[dict[str, Any], int]] = {
    'resnet50': (dict(type='ResNet', depth=50), 2048),
    'resnet18': (dict(type='ResNet', depth=18), 512),
    'resnet50_cifar': (dict(type='ResNet_CIFAR', depth=50), 2048),
    'wrn28_10': (dict(type='mmstp.WideResNet', depth=28, widen_factor=10), 640),
}
PAPER = '((2, 3, 4, 2), (0.3, 0.3, 0.3, 0.7))'  # Table 8, of ResNet-50


def classifier(network: str = 'resnet50', classes: int = 1000) -> nn.Module:
    """One of `BACKBONES` with pooling and a linear head, in eval mode."""
    backbone, channels = BACKBONES[network]
    model: nn.Module = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(backbone),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=classes,
                in_channels=channels,
                loss=dict(type='CrossEntropyLoss'),
            ),
        )
    )
    model.eval()
    return model


def members(supernet: Supernet, target: float, count: int, seed: int) -> list[Architecture]:
    """Architectures that meet a budget."""
    budget = Budget.of(target, 'macs', TOLERANCE, supernet.space, supernet.cost)
    rows = feasible_rows(supernet.space, supernet.cost, budget, count, seed)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [supernet.space.decode(row) for row in rows[chosen]]
