"""What accuracy is left of whole detectors, beside what a user would do otherwise.

The objects are digits. The dense detector begins with the digits' classifier as its backbone and is
trained for its schedule (8 epochs); that is where pruning begins, with as much time again. Time is
counted in steps of the dense detector, measured side by side with those of the others:

- ``dense``: the dense detector, trained for both;
- ``stp``: `mmstp.STP` from the trained detector, preset ``pretrained``;
- ``backbone``: the same, with neck and heads kept whole;
- ``uniform``: the trained detector cut to the most uniform architecture of the budget by the norms
  of its channels, then trained;
- ``torch-pruning``: the same by Torch-Pruning, of RetinaNet (another head's layers would have to
  be named);
- ``screened``: as ``uniform``, with the architecture that keeps most of the trained detector;
- ``scratch``: the uniform architecture from random weights, trained for both.

``python benchmarks/detectors/run.py --minutes 60`` runs what is not in ``rows.jsonl`` yet, pauses
at the end of an epoch when the time is up, and goes on from there the next time; ``report.py``
makes the table.
"""

from __future__ import annotations

import argparse
import copy
import functools
import io
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT / 'tools')]

import torch  # noqa: E402
from dataset_converters.digits_to_coco import write_data_set  # noqa: E402
from demo import plain, set_epochs  # noqa: E402
from demo_detection import CLASSIFIER, SCENES, average_precision  # noqa: E402
from measure import interleave, ratios  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.runner import Runner, set_random_seed  # noqa: E402
from torch import nn  # noqa: E402

from mmstp import STP, Architecture, Supernet  # noqa: E402
from mmstp.atomic_files import write_json  # noqa: E402
from mmstp.cli.launch import load_config  # noqa: E402
from mmstp.foreign import pytree  # noqa: E402
from mmstp.registry import build_model  # noqa: E402
from mmstp.search.budget import Budget, feasible_rows, most_uniform  # noqa: E402
from mmstp.stp.hooks.statistics import on_batches  # noqa: E402
from mmstp.stp.screening import SCREENED, screen  # noqa: E402
from mmstp.stp.tasks import with_task  # noqa: E402
from mmstp.subnets.cut import count_macs  # noqa: E402

ROWS = HERE / 'rows.jsonl'
DETECTORS = {
    'mask_rcnn': 'configs/mask_rcnn/mask-rcnn_r50-slim_fpn_digits.py',
    'retinanet': 'configs/retinanet/retinanet_r50-slim_fpn_digits.py',
}
INPUT_SHAPE = (3, 160, 160)
TOLERANCE = 0.02
BUDGETS = (0.5, 0.25)
METHODS = ('dense', 'stp', 'uniform', 'screened', 'torch-pruning', 'scratch', 'backbone')
# of the whole detector; a backbone alone makes it no smaller
OWN_BUDGETS = {'dense': [1.0], 'backbone': [0.7]}


class PausedError(Exception):
    """The time of this call is up; the run goes on with the next call."""


@dataclass
class Study:
    """A detector and a seed: what all methods share, and where it lies.

    Attributes:
        detector: A name in `DETECTORS`.
        seed: Of weights, batches and searches.
        work: The folder of all runs.
        until: When to pause, by `time.monotonic`.
    """

    detector: str
    seed: int
    work: Path
    until: float

    @cached_property
    def config(self) -> Config:
        """Of the dense detector, on the scenes."""
        scenes = self.work / 'scenes'
        if not (scenes / 'annotations/instances_val2017.json').is_file():
            write_data_set(scenes, SCENES, 0)
        config = load_config(str(ROOT / DETECTORS[self.detector]))
        for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            config[field].dataset.data_root = f'{scenes}/'
            config[field].num_workers = 0
        annotations = str(scenes / 'annotations/instances_val2017.json')
        config.val_evaluator.ann_file = config.test_evaluator.ann_file = annotations
        config.model.backbone.init_cfg = dict(
            type='Pretrained', checkpoint=self.classifier(), prefix='backbone.'
        )
        return config

    @property
    def epochs(self) -> int:
        """Of the dense detector's schedule."""
        return int(self.config.train_cfg.max_epochs)

    def classifier(self) -> str:
        """The checkpoint of the digits' classifier, trained once for all detectors."""
        digits = load_config(str(CLASSIFIER))
        digits.work_dir = str(self.work / 'classifier' / str(self.seed) / 'dense')
        digits = plain(digits, digits.model.model.to_dict(), 'dense')
        checkpoint = Path(digits.work_dir) / f'epoch_{digits.train_cfg.max_epochs}.pth'
        if not checkpoint.is_file():
            digits.randomness = dict(seed=self.seed)
            digits.log_level = 'ERROR'
            Runner.from_cfg(digits).train()
        return str(checkpoint)

    def dense(self) -> Any:
        """The dense detector as it begins."""
        set_random_seed(self.seed)
        network: Any = build_model(self.config.model.to_dict(), 'mmdet')
        network.init_weights()
        return network

    def trained_dense(self) -> nn.Module:
        """The dense detector after its schedule: where pruning begins."""
        return self.trained('dense', self.dense(), self.epochs)[0].model

    def supernet(self, network: nn.Module) -> Supernet:
        """The subnets of a detector."""
        return with_task(network, INPUT_SHAPE, {}, None)[0]

    def trained(
        self, name: str, network: nn.Module, epochs: int, hooks: list[Any] | None = None
    ) -> tuple[Runner, dict[str, float]]:
        """A run of training, begun, gone on with, or read back; with the accuracy at its end."""
        config = copy.deepcopy(self.config)
        set_epochs(config, epochs)
        runner = self.runner(
            name,
            network,
            train_dataloader=config.train_dataloader,
            optim_wrapper=config.optim_wrapper,
            param_scheduler=config.param_scheduler,
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=epochs),
            custom_hooks=[*(hooks or []), dict(type='mmstp.EpochSeedHook'), Pause(self.until)],
            resume=True,
        )
        ended = Path(runner.work_dir) / 'ended.json'
        with redirect_stdout(io.StringIO()):  # pycocotools prints a page per evaluation
            if ended.is_file():
                runner.load_or_resume()
            else:
                runner.train()
                write_json(ended, average_precision(runner))
        return runner, json.loads(ended.read_text())

    def evaluated(self, network: nn.Module) -> dict[str, float]:
        """The accuracy of a detector as it is."""
        runner = self.runner('evaluated', network)
        with redirect_stdout(io.StringIO()):
            runner.val()
        return average_precision(runner)

    def runner(self, name: str, network: nn.Module, **options: Any) -> Runner:
        """A run in a folder of its own that validates as the detector's config says."""
        folder = self.work / self.detector / str(self.seed) / name
        return Runner(
            network,
            str(folder),
            **{key: self.config[key] for key in ('val_dataloader', 'val_evaluator', 'val_cfg')},
            default_hooks=dict(
                logger=None, checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
            ),
            randomness=dict(seed=self.seed),
            default_scope='mmdet',
            log_level='ERROR',
            experiment_name=f'{folder}',
            cfg=dict(visualizer=None),
            **options,
        )

    def dataloader(self, part: str) -> Any:
        """Of ``'train'`` or ``'val'``."""
        with DefaultScope.overwrite_default_scope('mmdet'):
            return Runner.build_dataloader(self.config[f'{part}_dataloader'].to_dict(), seed=0)

    def cost(self, build: Callable[[], nn.Module]) -> float:
        """What a step of a network's training takes, in steps of the dense detector's."""
        batch = next(iter(self.dataloader('train')))
        steps = {'own': step_of(build(), batch), 'dense': step_of(self.dense(), batch)}
        return statistics.median(ratios(*interleave(steps, 7).values()))

    def planned(
        self,
        name: str,
        allowance: float,
        parts: dict[float, Callable[[], nn.Module]],
        screened: float = 0.0,
    ) -> int:
        """How many epochs an allowance of dense ones is, decided once.

        Args:
            name: Of the run.
            allowance: In epochs of the dense detector.
            parts: What makes the network as it is then, by the share of the iterations.
            screened: Forward passes before the first step, for each step; one is taken for a third
                of a step of the last part.
        """
        path = self.work / self.detector / str(self.seed) / f'{name}.json'
        if not path.is_file():
            costs = {share: self.cost(build) for share, build in parts.items()}
            cost = sum(share * its for share, its in costs.items())
            cost += screened * costs[list(parts)[-1]] / 3
            write_json(path, {'cost': cost, 'epochs': max(1, round(allowance / cost))})
        return int(json.loads(path.read_text())['epochs'])


class Pause(Hook):
    """Ends this call after an epoch, when its checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self, until: float) -> None:
        self.until = until

    def after_train_epoch(self, runner: Runner) -> None:
        if time.monotonic() > self.until and runner.epoch + 1 < runner.max_epochs:
            raise PausedError


def step_of(network: Any, batch: Any) -> Callable[[], object]:
    """A step of training on a batch, without the data's pipeline."""
    network.train()
    if isinstance(network, STP):
        network.driver, network.warmup = step_of, 0.0  # nothing shrinks this pool: it is only timed
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)

    def step() -> None:
        data = network.data_preprocessor(copy.deepcopy(batch), True)
        loss, _ = network.parse_losses(network(**data, mode='loss'))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@dataclass
class Found:
    """What a method ends with: the detector, how good it is, and further columns of its row."""

    network: nn.Module
    accuracy: dict[str, float]
    more: dict[str, Any]


def stp(study: Study, budget: float, **options: Any) -> Found:
    """`mmstp.STP` from the trained detector, preset ``pretrained``."""
    name = f'{"backbone" if options else "stp"}-{budget:g}'

    def build() -> STP:
        set_random_seed(study.seed)
        return STP(
            study.trained_dense(), target=budget, tolerance=TOLERANCE, input_shape=INPUT_SHAPE,
            preset='pretrained', pool=dict(seed=study.seed), **options,
        )  # fmt: skip

    def alone() -> STP:
        found = build()
        screen_on_a_batch(study, found)  # such a one the search will end with
        found.pool.shrink(len(found.pool) - 1)
        found.go_alone()
        return found

    model = build()
    epochs = study.planned(name, study.epochs, {1.0: alone}, screened=SCREENED)
    model.supernet.order_channels()
    runner, accuracy = study.trained(name, model, epochs, [dict(type='mmstp.PoolHook')])
    found: Any = runner.model
    more = described(found.supernet, found.pool.best) | {'epochs': epochs}
    return Found(found.export(), accuracy, more)


def backbone(study: Study, budget: float) -> Found:
    """The same, with neck and heads kept whole: as small as the backbone makes it."""
    return stp(study, budget, space=dict(fix=['^neck', '_head']))


def uniform(study: Study, budget: float) -> Found:
    """The trained detector, cut to the uniform architecture by norms, then trained."""
    supernet = study.supernet(study.trained_dense())
    supernet.order_channels()
    return cut(study, f'uniform-{budget:g}', supernet, uniform_of(supernet, budget), study.epochs)


def screened(study: Study, budget: float) -> Found:
    """As ``uniform``, but of a hundred that which keeps most of the detector on a batch."""
    stp = STP(
        study.trained_dense(), target=budget, tolerance=TOLERANCE, input_shape=INPUT_SHAPE,
        pool=dict(size=100, seed=study.seed),
    )  # fmt: skip
    screen_on_a_batch(study, stp)
    name = f'screened-{budget:g}'
    return cut(study, name, stp.supernet, stp.pool.best, study.epochs)


def screen_on_a_batch(study: Study, stp: STP) -> None:
    """Gives a hundred candidates their first scores."""
    stp.supernet.order_channels()
    stp.pool.shrink(len(stp.pool) - 100)
    on_batches(stp.model, study.dataloader('train'), 8, functools.partial(screen, stp))


def scratch(study: Study, budget: float) -> Found:
    """The uniform architecture from random weights, for both schedules."""
    config = study.config.model.to_dict()
    config['backbone']['init_cfg'] = None
    set_random_seed(study.seed)
    network: Any = build_model(config, 'mmdet')
    network.init_weights()
    supernet = study.supernet(network)
    name = f'scratch-{budget:g}'
    return cut(study, name, supernet, uniform_of(supernet, budget), 2 * study.epochs)


def uniform_of(supernet: Supernet, budget: float) -> Architecture:
    """The most uniform architecture of a budget."""
    space, cost = supernet.space, supernet.cost
    meets = Budget.of(budget, 'macs', TOLERANCE, space, cost)
    return most_uniform(space, feasible_rows(space, cost, meets, 1000))


def torch_pruning(study: Study, budget: float) -> Found:
    """As ``uniform`` by Torch-Pruning: the same fraction of every layer, by L1 norms of groups."""
    import torch_pruning as tp

    image, heads = torch.zeros(1, *INPUT_SHAPE), ('bbox_head.retina_cls', 'bbox_head.retina_reg')
    dense = study.trained_dense().eval()
    macs = count_macs(dense, (image,))

    def pruned(ratio: float) -> Any:
        network = copy.deepcopy(dense)
        tp.pruner.BasePruner(
            network,
            image,
            importance=tp.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=[network.get_submodule(path) for path in heads],
            forward_fn=lambda model, x: pytree.tree_leaves(model(x)),
        ).step()
        return network

    low, high = 0.0, 0.9
    for _ in range(8):
        middle = (low + high) / 2
        ratio = count_macs(pruned(middle), (image,)) / macs
        low, high = (middle, high) if ratio > budget else (low, middle)
    network, name = pruned(high), f'torch-pruning-{budget:g}'
    epochs = study.planned(name, study.epochs, {1.0: lambda: pruned(high)})
    more = {
        'architecture': f'torch-pruning {high:.3f}',
        'macs_ratio': count_macs(network, (image,)) / macs,
        'params_ratio': parameters(network) / parameters(dense),
        'epochs': epochs,
    }
    runner, accuracy = study.trained(name, network, epochs)
    return Found(runner.model, accuracy, more)


def parameters(network: nn.Module) -> int:
    """How many a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def cut(
    study: Study, name: str, supernet: Supernet, architecture: Architecture, allowance: int
) -> Found:
    """An architecture, cut out and trained."""
    epochs = study.planned(name, allowance, {1.0: lambda: supernet.export(architecture)})
    runner, accuracy = study.trained(name, supernet.export(architecture), epochs)
    more = described(supernet, architecture) | {'epochs': epochs}
    return Found(runner.model, accuracy, more)


def dense(study: Study, budget: float) -> Found:
    """The dense detector, trained for both schedules: its own, and the same again."""
    supernet = study.supernet(study.dense())
    _, first = study.trained('dense', study.dense(), study.epochs)
    runner, accuracy = study.trained('dense-again', study.trained_dense(), study.epochs)
    given = {f'given_{name}': value for name, value in first.items()}
    more = described(supernet, supernet.space.largest) | {'epochs': 2 * study.epochs}
    return Found(runner.model, accuracy, given | more)


def described(supernet: Supernet, architecture: Any) -> dict[str, Any]:
    """Columns of a row."""
    found = supernet.describe(architecture)
    return {name: found[name] for name in ('architecture', 'macs_ratio', 'params_ratio')}


RUN = {
    'dense': dense, 'stp': stp, 'uniform': uniform, 'screened': screened, 'scratch': scratch,
    'backbone': backbone, 'torch-pruning': torch_pruning,
}  # fmt: skip


def quiet() -> None:
    """One thread, and nothing of what MMEngine tells of every run."""
    warnings.filterwarnings('ignore')
    logging.disable(logging.INFO)
    torch.set_num_threads(1)


def main() -> None:
    """Runs what is missing, detector by detector and seed by seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--detectors', nargs='+', choices=DETECTORS, default=list(DETECTORS))
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--budgets', nargs='+', type=float, default=list(BUDGETS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/detectors')
    parser.add_argument('--rows', type=Path, default=ROWS)
    args = parser.parse_args()
    quiet()
    until = time.monotonic() + 60 * args.minutes
    rows = args.rows.read_text().splitlines() if args.rows.is_file() else []
    there = {tuple(json.loads(row)['run']) for row in rows}
    for seed in args.seeds:
        for detector in args.detectors:
            for method in args.methods:
                for budget in OWN_BUDGETS.get(method, args.budgets):
                    run = (detector, method, budget, seed)
                    unknown = method == 'torch-pruning' and detector != 'retinanet'
                    if run in there or unknown:
                        continue
                    try:
                        found = RUN[method](
                            Study(detector, seed, args.work_dir.absolute(), until), budget
                        )
                    except PausedError:
                        return
                    row = {'run': run, **found.accuracy, **found.more, 'torch': torch.__version__}
                    with args.rows.open('a') as file:
                        file.write(json.dumps(row) + '\n')
                    print(json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
