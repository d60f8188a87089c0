"""Other ways to train a network whose subnets share its weights."""

from __future__ import annotations

import random
from typing import Any

import torch
from methods import Found, method, option
from mmengine.model import BaseModel
from torch import Tensor, nn
from training import Trial, logits_of

from mmstp import Architecture, Supernet

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
    members = trial.members(model.supernet)
    chosen = random.Random(trial.setting.seed).sample(members, min(CANDIDATES, len(members)))

    def measured(architecture: Architecture) -> float:
        network = trial.calibrated(model.supernet.export(architecture))
        return trial.top1(network, 'training')

    best = max(chosen, key=measured)
    main = {'main_top1': trial.top1(model.network)}
    return Found(trial.calibrated(model.supernet.export(best)), best, main)
