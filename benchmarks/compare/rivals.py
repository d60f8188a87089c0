"""Rivals that are trained in a way of their own."""

from __future__ import annotations

import random
from typing import Any

import torch
from methods import Found, chosen, method, option
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from training import Trial, logits_of

from mmstp import Architecture, Supernet

ROUNDS = 2  # of magnitude pruning before channels are refilled
CANDIDATES = 8  # members of the budget that are measured at the end


class Sandwich(BaseModel):
    """The sandwich rule with in-place distillation.

    A step trains the largest subnet by cross entropy and the smallest and two random ones by what
    the largest predicts, whatever they cost: no budget is known.

    Yu and Huang, *Universally Slimmable Networks and Improved Training Techniques*, ICCV 2019.
    """

    def __init__(self, network: Any, supernet: Supernet) -> None:
        super().__init__(data_preprocessor=network.data_preprocessor)
        self.network, self.supernet = network, supernet
        self._is_init = True

    def forward(self, inputs: Tensor, data_samples: list[Any], mode: str) -> dict[str, Tensor]:
        """The losses of a step."""
        assert mode == 'loss'
        space = self.supernet.space
        logits = logits_of(self.network, inputs)
        labels = torch.cat([sample.gt_label for sample in data_samples])
        soft = logits.detach().softmax(dim=1)
        draws = random.Random(int(torch.randint(2**31, ())))  # follows the epoch's seed
        losses = {'loss_largest': nn.functional.cross_entropy(logits, labels)}
        drawn = [space.smallest, space.sample(draws), space.sample(draws)]
        for name, architecture in zip(('smallest', 'first', 'second'), drawn, strict=True):
            with self.supernet.activate(architecture):
                own = logits_of(self.network, inputs)
            losses[f'loss_{name}'] = nn.functional.cross_entropy(own, soft)
        return losses


@method('sandwich', 'us-nets')
def sandwich(trial: Trial, preset: str) -> Found:
    """A universally slimmable network, and the best of a few members by their training accuracy.

    Measuring them takes seconds and is not counted.
    """

    def build() -> Sandwich:
        network = trial.dense()
        return Sandwich(network, trial.supernet(network))

    model: Any = trial.trained('sandwich', build, lr=option(trial, 'lr'))
    members = [model.supernet.space.decode(row) for row in trial.members(model.supernet)]
    tried = random.Random(trial.setting.seed).sample(members, min(CANDIDATES, len(members)))

    def measured(architecture: Architecture) -> float:
        network = trial.calibrated(model.supernet.export(architecture))
        return trial.top1(network, 'training')

    best = max(tried, key=measured)
    main = {'main_top1': trial.top1(model.network)}
    return Found(trial.calibrated(model.supernet.export(best)), best, main)


class Masked(Hook):
    """Keeps pruned weights at zero."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        self.masks = masks

    @torch.no_grad()
    def _apply(self, runner: Runner) -> None:
        for name, parameter in runner.model.named_parameters():
            if name in self.masks:
                parameter *= self.masks[name]

    def before_train(self, runner: Runner) -> None:
        self._apply(runner)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._apply(runner)


def largest_weights(network: nn.Module, density: float) -> dict[str, Tensor]:
    """By name, 1 for the share of all weights that are largest in magnitude, else 0."""
    weights = {n: p.detach().abs() for n, p in network.named_parameters() if p.dim() > 1}
    every = torch.cat([weight.flatten() for weight in weights.values()])
    threshold = every.sort(descending=True).values[int(density * (len(every) - 1))]
    return {name: (weight >= threshold).float() for name, weight in weights.items()}


@method('refill', 'imp')
def refill(trial: Trial, preset: str) -> Found:
    """Rounds of magnitude pruning, each from the first weights; then whole channels of those.

    The channels of the uniform architecture are those with the largest weights left; they are
    refilled, and trained from the first weights. Every round has the same share of the allowance.

    Chen et al., *Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets*, ICML
    2022.
    """
    share, lr = 1 / (ROUNDS + 1), option(trial, 'lr')
    architecture = chosen(trial, trial.supernet(trial.dense()), 'uniform')
    masks: dict[str, Tensor] = {}
    for number in range(1, ROUNDS + 1):
        network = trial.trained(f'round{number}', trial.dense, share, lr, [Masked(masks)])
        masks = largest_weights(network, trial.setting.budget ** (number / ROUNDS))
    ticket = {n: p.detach() * masks.get(n, 1) for n, p in network.named_parameters()}

    def build() -> nn.Module:
        supernet = trial.supernet(trial.dense())
        supernet.order_channels(norm=1, by=ticket)
        return supernet.export(architecture)

    return Found(trial.trained('refilled', build, share, lr), architecture)
