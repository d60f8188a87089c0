"""The training that all methods share: data, optimizer, schedule, and an allowance.

A method is made of phases, each a run of MMEngine's runner with a folder of its own. A phase that
was interrupted goes on where its last epoch ended; one that has ended is read back.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import mmpretrain.datasets
import mmpretrain.models  # noqa: F401  both register
import numpy as np
import torch
from measure import interleave, ratios
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, set_random_seed
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from numpy.typing import NDArray
from setting import HERE, Setting
from torch import Tensor, nn

from mmstp import STP, Supernet
from mmstp.atomic_files import write_json
from mmstp.search.budget import Budget, feasible_rows
from mmstp.stp.hooks.statistics import calibrate_on
from mmstp.stp.losses import normalized_kl

TOLERANCE = 0.03
CALIBRATION = 2000  # images for norm statistics
DRAWN = 1000  # architectures, from a space that is too large to go through


class PausedError(Exception):
    """The time of this call is up; the run goes on with the next call."""


class WaitingError(Exception):
    """The run needs the result of another one that is not there yet."""


@dataclass
class Trial:
    """One run of the comparison: builds, trains and counts what was spent.

    Attributes:
        setting: What is run.
        work: The folder of all runs.
        device: ``'cpu'`` or ``'cuda'``.
        timed_on: Where the cost of a step is measured; the device by default.
        stop: Whether to pause at the end of the epoch.
        rows: Results of other runs, for methods that start from one.
        seconds: Spent in training so far: of the process on a CPU, of the clock on a GPU.
        steps: Of all phases.
        epochs: Of all phases.
        read: The options of the preset that the method has asked for.
    """

    setting: Setting
    work: Path
    device: str = 'cpu'
    timed_on: str | None = None
    stop: Callable[[], bool] = lambda: False
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    epochs: int = 0
    read: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.data = Config.fromfile(HERE / 'data' / f'{self.setting.data}.py')
        self.network = Config.fromfile(HERE / 'networks' / f'{self.setting.network}.py')

    @property
    def runs(self) -> Path:
        """Where runs on this device lie: none goes on from the weights of another one."""
        return self.work if self.device == 'cpu' else self.work / self.device

    @property
    def folder(self) -> Path:
        """Where its phases lie."""
        return self.runs / self.setting.key

    @property
    def shared(self) -> Path:
        """Where phases lie that several methods begin with."""
        return self.runs / self.setting.data / self.setting.network / 'common'

    # --- networks ---------------------------------------------------------------------------------

    def classifier_config(self) -> dict[str, Any]:
        """The dense network's config, with the data's channels and classes."""
        config: dict[str, Any] = self.network.model.to_dict()
        channels = self.data.input_shape[0]
        if self.network.get('in_channels', channels) != channels:
            raise ValueError(
                f'networks/{self.setting.network}.py takes images of {self.network.in_channels} '
                f'channels, those of data/{self.setting.data}.py have {channels}'
            )
        if 'in_channels' not in self.network:
            config['backbone']['in_channels'] = channels
        config['head']['num_classes'] = self.data.data_preprocessor.num_classes
        config['data_preprocessor'] = self.data.data_preprocessor.to_dict()
        return config

    def dense(self) -> nn.Module:
        """The dense network with the seed's weights."""
        set_random_seed(self.setting.seed)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            network: nn.Module = MODELS.build(self.classifier_config())
        network.init_weights()
        return network.to(self.device)

    def supernet(self, network: nn.Module) -> Supernet:
        """The subnets of a network, in the space of the comparison."""
        example = torch.zeros(1, *self.data.input_shape, device=self.device)
        return Supernet(network, example, **self.network.space)

    def members(self, supernet: Supernet) -> NDArray[np.int64]:
        """Those that meet the budget, as rows; about `DRAWN` of a space with too many."""
        space, cost = supernet.space, supernet.cost
        budget = Budget.of(self.setting.budget, 'macs', TOLERANCE, space, cost)
        return feasible_rows(space, cost, budget, DRAWN, self.setting.seed)

    # --- training ---------------------------------------------------------------------------------

    def plan(
        self,
        name: str,
        parts: Mapping[str, tuple[float, Callable[[], nn.Module]]],
        share: float = 1.0,
        common: bool = False,
        of: str = 'time',
        screened: float = 0.0,
    ) -> dict[str, int]:
        """How many epochs the parts of a phase have; decided once.

        Args:
            name: Of the phase.
            parts: By name, a share, and what makes the network as it is then, to measure what a
                step costs.
            share: Of the run's allowance.
            common: Whether other methods begin with the same phase.
            of: What the parts have shares of: the phase's ``'time'`` or its ``'epochs'``.
            screened: Forward passes of subnets before the first step, for each step that follows;
                one is taken for a third of a step of the last part.
        """
        base = self._allowed(share)
        folder = self._folder(name, share, common)
        with locked(folder):
            path = folder / 'plan.json'
            if not path.exists():
                free = self.setting.compare == 'epochs' or common
                costs = {part: 1.0 if free else self.cost(build) for part, (_, build) in
                         parts.items()}  # fmt: skip
                shares = {part: its for part, (its, _) in parts.items()}
                if of == 'epochs':
                    mean = sum(its * costs[part] for part, its in shares.items())
                    mean += screened * costs[list(parts)[-1]] / 3
                    costs = dict.fromkeys(parts, mean)
                epochs = {part: max(1, round(base * its / costs[part])) for part, its in
                          shares.items()}  # fmt: skip
                write_json(path, {'epochs': epochs, 'costs': costs})
        found: dict[str, int] = json.loads(path.read_text())['epochs']
        return found

    def _allowed(self, share: float) -> float:
        """Of the run's allowance, in epochs of the dense network."""
        return float(self.data.epochs * self.setting.length * share)

    def _folder(self, name: str, share: float, common: bool) -> Path:
        if common:
            return self.shared / f'{name}-{self._allowed(share):g}' / str(self.setting.seed)
        return self.folder / name

    def trained(
        self,
        name: str,
        build: Callable[[], nn.Module],
        share: float = 1.0,
        lr: float = 1.0,
        hooks: Sequence[dict[str, Any] | Hook] = (),
        common: bool = False,
        course: int | None = None,
    ) -> nn.Module:
        """A network after a phase of training.

        Args:
            name: Of the phase.
            build: Makes the network as it starts; called again to measure what a step costs, unless
                there is a plan of the phase already.
            share: Of the run's allowance.
            lr: The first learning rate, in multiples of the network's.
            hooks: Of the method.
            common: Whether other methods begin with the same phase.
            course: Epochs in which the learning rate falls to 0; all by default.

        Raises:
            PausedError: If the time of this call is up.
        """
        name = f'{name}@lr={lr:g}' if common else name
        epochs = sum(self.plan(name, {name: (1.0, build)}, share, common).values())
        folder = self._folder(name, share, common)
        with locked(folder):
            ended = folder / 'ended.json'
            runner = self._runner(folder, build(), epochs, lr, hooks, course or epochs)
            if ended.exists():
                runner.load_or_resume()
            else:
                runner.train()
                spent = next(hook for hook in runner.hooks if isinstance(hook, Spent))
                write_json(ended, {'seconds': spent.seconds, 'steps': runner.iter})
        found = json.loads(ended.read_text())
        if runner.iter != found['steps']:
            raise FileNotFoundError(
                f'{folder}: this phase has ended, but its last checkpoint is gone: delete the '
                'folder, and it is trained anew'
            )
        self.seconds += found['seconds']
        self.steps += found['steps']
        self.epochs += epochs
        network: nn.Module = runner.model
        return network

    def _runner(
        self,
        folder: Path,
        network: nn.Module,
        epochs: int,
        lr: float,
        hooks: Sequence[dict[str, Any] | Hook],
        course: int,
    ) -> Runner:
        optimizer = dict(self.network.optimizer)
        optimizer['lr'] *= lr
        return Runner(
            network,
            str(folder),
            train_dataloader=copy.deepcopy(self.data.train_dataloader),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer),
            param_scheduler=dict(
                type='CosineAnnealingLR', T_max=course, end=course, convert_to_iter_based=True
            ),
            default_hooks=dict(
                logger=None,
                checkpoint=dict(type='mmstp.CheckpointHook', interval=1, max_keep_ckpts=1),
            ),
            custom_hooks=[
                *hooks,
                dict(type='mmstp.EpochSeedHook'),
                Spent(self.device),
                Pause(self.stop),
            ],
            resume=True,
            randomness=dict(seed=self.setting.seed),
            default_scope='mmpretrain',
            log_level='ERROR',
            experiment_name=f'{folder}',
            cfg=dict(visualizer=None),
        )

    def cost(self, build: Callable[[], nn.Module]) -> float:
        """What a step of a network's training takes, in steps of the dense network's, side by side.

        The data's pipeline is left out: a user has workers for it.
        """
        return statistics.median(
            ratios(
                *interleave(
                    {'own': self._stepper(build()), 'dense': self._stepper(self.dense())}, 30, 3
                ).values()
            )
        )

    def _stepper(self, network: nn.Module) -> Callable[[], object]:
        batch = self.data.train_dataloader.batch_size
        classes = self.data.data_preprocessor.num_classes
        labels = torch.randint(classes, (batch,)).tolist()
        data = {
            'inputs': torch.randint(256, (batch, *self.data.input_shape)),
            'data_samples': [DataSample().set_gt_label(label) for label in labels],
        }
        network.to(self.timed_on or self.device).train()
        if isinstance(network, STP):
            network.driver = self  # nothing shrinks this pool: it is only timed
            network.warmup = 0.0
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

        def step() -> None:
            losses = network(**network.data_preprocessor(data, True), mode='loss')
            loss, _ = network.parse_losses(losses)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def training_images(self) -> Any:
        """The dataloader of the training images."""
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return Runner.build_dataloader(copy.deepcopy(self.data.train_dataloader), seed=0)

    def steps_per_epoch(self) -> int:
        """Batches."""
        return len(self.training_images())

    # --- results ----------------------------------------------------------------------------------

    @property
    def has_validation(self) -> bool:
        """Whether images are set aside on which hyper-parameters are chosen."""
        return 'validation_dataset' in self.data

    def dataset(self, split: str) -> Any:
        """The images of ``'test'``, ``'validation'``, or ``'training'`` without augmentation."""
        config = copy.deepcopy(self.data.test_dataloader)
        pipeline = config.dataset.pipeline
        if split == 'validation':
            config.dataset = copy.deepcopy(self.data.validation_dataset)
        elif split == 'training':
            config.dataset = copy.deepcopy(self.data.train_dataloader.dataset)
            config.dataset.pipeline = pipeline
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return Runner.build_dataloader(config, seed=0)

    @torch.no_grad()
    def top1(self, network: Any, split: str = 'test') -> float:
        """Accuracy in percent."""
        network.eval()
        right = total = 0
        for batch in self.dataset(split):
            data = network.data_preprocessor(batch, False)
            labels = torch.cat([sample.gt_label for sample in data['data_samples']])
            right += int((logits_of(network, data['inputs']).argmax(1) == labels).sum())
            total += len(labels)
        return 100 * right / total

    def calibrated(self, network: nn.Module) -> nn.Module:
        """The network with norm statistics of its own, on training images."""
        calibrate_on(network, self.training_images(), CALIBRATION)
        return network


def logits_of(network: Any, inputs: Tensor) -> Tensor:
    """Of shape (batch, classes)."""
    logits = network(inputs, mode='tensor')
    return logits[0] if isinstance(logits, (list, tuple)) else logits


def device_name(device: str) -> str:
    """What a row says of where it was run: the GPU, or the processor's kind."""
    return torch.cuda.get_device_name() if device != 'cpu' else platform.machine()


class Taught(BaseModel):
    """A network that also learns from a finished teacher: cross entropy plus `normalized_kl`."""

    def __init__(self, network: Any, teacher: nn.Module) -> None:
        super().__init__(data_preprocessor=network.data_preprocessor)
        self.network = network
        self._teacher = [teacher.eval().requires_grad_(False)]  # no part of the checkpoint
        self._is_init = True

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Moves the teacher too."""
        self._teacher[0]._apply(*args, **kwargs)
        moved: nn.Module = super()._apply(*args, **kwargs)
        return moved

    def forward(self, inputs: Tensor, data_samples: list[Any], mode: str) -> dict[str, Tensor]:
        """The losses of a step."""
        assert mode == 'loss'
        logits = logits_of(self.network, inputs)
        with torch.no_grad():
            soft = logits_of(self._teacher[0], inputs)
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return {
            'loss_ce': nn.functional.cross_entropy(logits, labels),
            'loss_taught': normalized_kl(logits, soft),
        }


class Spent(Hook):
    """Counts what the epochs take, over interruptions."""

    priority = 'VERY_HIGH'

    def __init__(self, device: str) -> None:
        self.on_gpu = device != 'cpu'
        self.seconds = 0.0

    def _now(self) -> float:
        if not self.on_gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def before_run(self, runner: Runner) -> None:
        self._start = self._now()

    def before_train(self, runner: Runner) -> None:
        if not runner.iter:  # a pool may be screened
            self.seconds += self._now() - self._start

    def before_train_epoch(self, runner: Runner) -> None:
        self._start = self._now()

    def after_train_epoch(self, runner: Runner) -> None:
        self.seconds += self._now() - self._start

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint['seconds'] = self.seconds

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.seconds = checkpoint['seconds']


class Pause(Hook):
    """Ends this call after an epoch, when its checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def after_train_epoch(self, runner: Runner) -> None:
        if self.stop() and not self.is_last_train_epoch(runner):
            raise PausedError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, for phases that several methods share."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'lock').open('w') as file:
        flock(file, LOCK_EX)
        yield
