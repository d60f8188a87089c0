"""Rivals that come from libraries: the field's own code, called as its examples call it.

The libraries are those of ``requirements/benchmark.txt``; each is imported by the method that needs
it. What they return is no subnet of mmstp, so rows of these methods have no architecture. Layers
that mmstp keeps whole are kept whole: the output layer, and the stem unless a residual sum ties it
to its stage.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from methods import OPTIONS, Found, dense_network, finetuned, method, option
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn
from training import TOLERANCE, Spent, Trial, logits_of

from mmstp.atomic_files import write_json
from mmstp.subnets.cut import count_macs

OPTIONS.update(
    reg=5e-4,  # the penalty of group-sl, as in Torch-Pruning's commands for CIFAR
    growth=1e-3,  # of greg's penalty over the phase: what 100 epochs of 1e-5 there amount to
)


def library(name: str) -> Any:
    """A module of a library, or an error that says where the library is from."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{name} needs {error.name}: pip install -r requirements/benchmark.txt',
            name=error.name,
        ) from error


def example_of(trial: Trial) -> Tensor:
    """An image that networks are traced with."""
    return torch.zeros(1, *trial.data.input_shape, device=trial.device)


def whole_layers(trial: Trial) -> list[str]:
    """The names of the layers all of whose outputs mmstp keeps in every subnet."""
    network = trial.dense()
    supernet = trial.supernet(copy.deepcopy(network))
    return [
        name
        for name, module in supernet.export(supernet.space.smallest).named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        and len(module.weight) == len(network.get_submodule(name).weight)
    ]


# --- Torch-Pruning --------------------------------------------------------------------------------

STEPS = 400  # in which a pruner would remove everything, as in reproduce/main.py
GREG_START = 1e-4  # what greg's penalty grows from, likewise


@method('group-sl', 'paper')
def group_sl(trial: Trial, preset: str) -> Found:
    """Sparse learning of groups, cutting by their norms across all layers, tuning.

    Fang et al., *DepGraph: Towards Any Structural Pruning*, CVPR 2023, by Torch-Pruning 1.6.1 with
    what its ``reproduce/main.py`` passes for CIFAR: importance normalised by the largest, no weight
    decay while the penalty acts. Their pretrained network is left out: the penalty acts from
    random weights on, for half of the allowance.
    """
    return sparse(trial, group_norm(trial))


def group_norm(trial: Trial) -> Callable[..., Any]:
    """Makes the pruner of `group_sl`."""
    tp = library('torch_pruning')
    importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer='max')
    return partial(tp.pruner.GroupNormPruner, importance=importance, reg=option(trial, 'reg'))


@method('greg', 'paper')
def greg(trial: Trial, preset: str) -> Found:
    """Growing regularization, else as `group_sl`.

    Wang et al., *Neural Pruning via Growing Regularization*, ICLR 2021, as Torch-Pruning 1.6.1
    adapts it to groups: every epoch the penalty grows by the more the less a channel matters.
    """
    tp = library('torch_pruning')
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    make = partial(tp.pruner.GrowingRegPruner, importance=importance, reg=GREG_START)
    return sparse(trial, make, growth=option(trial, 'growth'))


def pruner_of(trial: Trial, make: Callable[..., Any], network: nn.Module) -> Any:
    """A pruner of all layers together, in small steps, that spares what mmstp keeps whole."""
    return make(
        network,
        example_of(trial),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[network.get_submodule(name) for name in whole_layers(trial)],
    )


def sparse(
    trial: Trial,
    make: Callable[..., Any],
    growth: float = 0.0,
    start: Callable[[], nn.Module] | None = None,
    tune: Callable[[Trial, nn.Module, float], nn.Module] = finetuned,
) -> Found:
    """The common part of the two: regularised, cut and tuned, each half of the allowance.

    Args:
        trial: Where it belongs.
        make: Makes the pruner.
        growth: Of its penalty.
        start: Makes the network that it starts from; random weights by default.
        tune: What comes after the cut.
    """
    start = start or trial.dense

    def build() -> Regularised:
        network = start()
        return Regularised(network, pruner_of(trial, make, network))

    trained: Any = trial.trained(
        'sparse', build, 0.5, option(trial, 'lr'), [SparseLearning(growth)]
    )
    network = copy.deepcopy(trained.network)  # without the pruner's hooks
    more = {'main_top1': trial.top1(network)}
    pruner = pruner_of(trial, make, network)
    pruned = cut(network, pruner, trial.setting.budget, example_of(trial))
    return Found(tune(trial, pruned, 0.5), more=more)


def cut(network: nn.Module, pruner: Any, budget: float, example: Tensor) -> nn.Module:
    """Prunes step by step down to the budget; of the two networks around it, the nearer one.

    A step removes a four-hundredth of all channels: about 1 % of the multiply-adds.

    Raises:
        ValueError: If what may be removed is not enough.
    """
    network.eval()
    macs = whole = count_macs(network, (example,))
    wanted = budget * whole
    nearest, distance = network, macs - wanted
    while macs > wanted and pruner.current_step < STEPS:
        nearest, distance = copy.deepcopy(network), macs - wanted
        pruner.step()
        macs = count_macs(network, (example,))
    if macs > wanted * (1 + TOLERANCE):
        raise ValueError(
            f'budget {budget:g}: Torch-Pruning removed all that it may, and left '
            f'{macs / whole:.3f} of the multiply-adds'
        )
    return network if abs(macs - wanted) < distance else nearest


class Regularised(BaseModel):
    """A network whose pruner adds a penalty's gradient at the end of every backward pass.

    The parameters' hooks do it and no hook of the runner, so that the steps that `Trial.cost` times
    have it too: it takes a good part of one.
    """

    def __init__(self, network: Any, pruner: Any) -> None:
        super().__init__(data_preprocessor=network.data_preprocessor)
        self.network = network
        self.pruner = pruner
        self._is_init = True
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._number, self._arrived = len(trained), 0
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._arrives)

    def _arrives(self, parameter: Tensor) -> None:
        self._arrived += 1
        if self._arrived == self._number:
            self._arrived = 0
            self.pruner.regularize(self.network)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """The network's."""
        return self.network(inputs, data_samples, mode)


class SparseLearning(Hook):
    """Leaves the decay of weights to the pruner, and lets its penalty grow if it can.

    Args:
        growth: Of the penalty of the channels that matter least, over the phase.
    """

    def __init__(self, growth: float) -> None:
        self.growth = growth

    def before_train(self, runner: Runner) -> None:
        for group in runner.optim_wrapper.param_groups:
            group['weight_decay'] = 0.0

    def after_train_epoch(self, runner: Runner) -> None:
        if self.growth:
            pruner = runner.model.pruner
            pruner.delta_reg = self.growth / runner.max_epochs
            pruner.update_reg()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self.growth:
            pruner = runner.model.pruner
            checkpoint['group_reg'] = [pruner.group_reg[group] for group in pruner._groups]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self.growth:
            pruner = runner.model.pruner  # of the dense network again: the same groups
            pruner.group_reg = dict(zip(pruner._groups, checkpoint['group_reg'], strict=True))


# --- Model-Optimizer ------------------------------------------------------------------------------

SCORED = 500  # training images that a candidate's statistics and score are of
QUEUE = 50  # batches that FastNAS wants for statistics, or it leaves them as they are


@method('fastnas', 'finetuned')
def fastnas(trial: Trial, preset: str) -> Found:
    """FastNAS on the dense network, then tuning; the search is paid for out of the other half.

    Of NVIDIA's Model-Optimizer, nvidia-modelopt 0.47.0: the score of every width of every layer
    alone, then by bisection the lowest threshold on what a width may lose that meets the budget.
    The score is the accuracy on training images, as nobody has others. Widths are multiples of the
    comparison's divisor: the library's own, 32, leaves slim networks no choice. The library keeps
    the last stage's output whole too, and stays below the budget where no threshold is close to it.
    """
    library('modelopt.torch.prune')  # before the training: whether it is there
    network = dense_network(trial, 0.5)
    dense_seconds = trial.seconds
    more = {'main_top1': trial.top1(network)}
    pruned, seconds = fastnas_subnet(trial, copy.deepcopy(network))
    share = 0.5
    if trial.setting.compare == 'time':
        share *= max(0.0, 1 - seconds / dense_seconds)
    trial.seconds += seconds
    return Found(finetuned(trial, pruned, share), more={**more, 'search_seconds': seconds})


def fastnas_subnet(trial: Trial, network: nn.Module) -> tuple[nn.Module, float]:
    """What FastNAS finds, and the seconds that it took when it was first searched for.

    What it learns about the layers is kept, so that a run that goes on gets the same at once.
    """
    prune = library('modelopt.torch.prune').prune
    library('torchprofile')  # modelopt counts with it, and does not require it
    folder = trial.folder / 'search'
    learned, ended = folder / 'learned.pth', folder / 'ended.json'
    folder.mkdir(parents=True, exist_ok=True)
    if not ended.exists():
        learned.unlink(missing_ok=True)  # of a search that was killed: its time is not known
    divisor = trial.network.space['divisor']
    ratios = tuple(0.05 * i for i in range(1, 21))  # the library's own
    widths = {'channels_ratio': ratios, 'kernel_size': (), 'channel_divisor': divisor}
    rules = {
        'nn.Conv2d': {'*': widths, **dict.fromkeys(whole_layers(trial))},
        'nn.BatchNorm2d': {'*': {'features_ratio': ratios, 'feature_divisor': divisor}},
    }
    spent = Spent(trial.device)
    spent.before_train_epoch(None)
    inputs, labels = scored_images(trial, network)

    def calibrate(model: nn.Module) -> None:
        for batch in inputs.chunk(QUEUE):
            model(batch)

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        model.eval()  # has the statistics estimated anew
        return 100 * float((logits_of(model, inputs).argmax(1) == labels).float().mean())

    with (
        open(os.devnull, 'w') as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        found, _ = prune(
            network,
            [('fastnas', rules)],
            {'flops': f'{100 * trial.setting.budget * (1 + TOLERANCE)}%'},
            example_of(trial),
            {
                'score_func': score,
                'forward_loop': calibrate,
                'checkpoint': str(learned),
                'verbose': False,
            },
        )
    spent.after_train_epoch(None)
    if not ended.exists():
        write_json(ended, {'seconds': spent.seconds})
    return found, json.loads(ended.read_text())['seconds']


def scored_images(trial: Trial, network: Any) -> tuple[Tensor, Tensor]:
    """Training images with the training's augmentation, and their labels: the same every time."""
    set_random_seed(trial.setting.seed)
    inputs, labels, number = [], [], 0
    for batch in trial.training_images():
        data = network.data_preprocessor(batch, False)
        inputs.append(data['inputs'])
        labels += [sample.gt_label for sample in data['data_samples']]
        number += len(inputs[-1])
        if number >= SCORED:
            break
    return torch.cat(inputs)[:SCORED], torch.cat(labels)[:SCORED]
