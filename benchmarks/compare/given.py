"""Methods that start from a trained dense network, which a user has and does not pay for.

It was trained for T; the allowance is what comes after. Every method may learn from it: what is cut
by norms or by Torch-Pruning does, unless the preset ends in ``-untaught``; of STP what `SEARCHES`
gives a teacher.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

from libraries import cut, example_of, group_norm, library, pruner_of, sparse
from methods import (
    ALONE,
    Found,
    chosen,
    dense_network,
    finetuned,
    method,
    option,
    search,
    survivor_of,
    taught,
    untrained,
)
from torch import nn
from training import Trial

SEARCHES: dict[str, dict[str, Any]] = {
    'stp-screened': dict(preset='recommended', screen=1),
    'pretrained': dict(preset='pretrained', screen=1),
    'pretrained-taught': dict(preset='pretrained', screen=1, survivor=dict(teacher='main')),
    'stp-15': ALONE | dict(end=0.15, survivor=dict(teacher='main')),
    'stp-30': ALONE | dict(end=0.3, survivor=dict(teacher='main')),
    'stp-15-untaught': ALONE | dict(end=0.15),
}


def given_network(trial: Trial) -> nn.Module:
    """The dense network after T, on nobody's account."""
    return dense_network(
        replace(trial, setting=replace(trial.setting, length=1.0, compare='epochs'))
    )


def tune(trial: Trial, pruned: nn.Module, share: float) -> nn.Module:
    """Training, with the given network as the teacher or without one, as the preset says."""
    if trial.setting.variant.endswith('-untaught'):
        return finetuned(trial, pruned, share)
    network: nn.Module = taught(
        trial,
        lambda: copy.deepcopy(pruned),
        given_network(trial),
        option(trial, 'tuning'),
        share,
    )
    return network


@method('given', 'magnitude', 'magnitude-untaught')
def magnitude(trial: Trial, preset: str) -> Found:
    """Cut to the uniform architecture by the L2 norms of its channels, then trained."""
    supernet = trial.supernet(given_network(trial))
    supernet.order_channels()
    architecture = chosen(trial, supernet, 'uniform')
    return Found(tune(trial, supernet.export(architecture), 1.0), architecture)


@method('given', 'scratch')
def scratch(trial: Trial, preset: str) -> Found:
    """The uniform architecture from random weights, taught: an external teacher."""
    architecture = chosen(trial, trial.supernet(trial.dense()), 'uniform')
    lr = option(trial, 'lr')
    return Found(
        taught(trial, lambda: untrained(trial, architecture), given_network(trial), lr, 1.0),
        architecture,
    )


@method('given', 'torch-pruning', 'torch-pruning-untaught')
def torch_pruning(trial: Trial, preset: str) -> Found:
    """Cut by Torch-Pruning's group magnitudes across all layers, then trained."""
    tp = library('torch_pruning')
    network = given_network(trial)
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = pruner_of(trial, partial(tp.pruner.BasePruner, importance=importance), network)
    pruned = cut(network, pruner, trial.setting.budget, example_of(trial))
    return Found(tune(trial, pruned, 1.0))


@method('given', 'group-sl', 'group-sl-untaught')
def group_sl(trial: Trial, preset: str) -> Found:
    """Torch-Pruning's sparse learning for half of the allowance, cut, then trained."""
    return sparse(trial, group_norm(trial), start=lambda: given_network(trial), tune=tune)


@method('given', 'stp-15-given')
def stp_then_taught(trial: Trial, preset: str) -> Found:
    """STP for 15 % of the time, and the survivor taught by the given network as it was."""
    model = search(trial, end=1.0, share=0.15, target_ce=1.0, start=lambda: given_network(trial))
    found = survivor_of(trial, model)
    return replace(found, network=tune(trial, found.network, 0.85))


@method('given', *SEARCHES)
def stp(trial: Trial, preset: str) -> Found:
    """STP from the given network, and its survivor alone."""
    return survivor_of(trial, search(trial, **SEARCHES[preset], start=lambda: given_network(trial)))
