"""How well scores rank the architectures of a pool.

``python benchmarks/ranking.py collect --seeds 0 1 2`` trains a pool that never shrinks, with
all its losses written down, and measures every member at three marks: its distillation loss on
held-out batches, and its accuracy with the shared weights. ``python benchmarks/ranking.py report``
replays the losses through every score and writes Spearman's rank correlations into
``docs/benchmarks.md``: with the two, and with the accuracy of members that were trained alone
(``benchmarks/compare/run.py --suite members``), which is what counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / 'compare')]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure import ROOT, table  # noqa: E402
from methods import search  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from pages import insert  # noqa: E402
from report import grouped, mean_and_error, written  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402
from setting import Setting, read_rows, setting_of  # noqa: E402
from surrogate import Surrogate  # noqa: E402
from training import Trial, logits_of  # noqa: E402

from mmstp import Architecture  # noqa: E402
from mmstp.atomic_files import write_json  # noqa: E402
from mmstp.search.budget import unevenness  # noqa: E402
from mmstp.stp.losses import normalized_kl  # noqa: E402

LOGS = HERE / 'ranking'
PAGE = ROOT / 'docs' / 'benchmarks.md'
MARKS = (0.3, 0.6, 1.0)  # of the training
BATCHES = 20  # of 256 held-out images
NEVER = 10**9  # iterations between two drops
EPOCHS = 13  # 1,200 steps of 64 images of 6,000

Scores = dict[str, float]  # by architecture; the lower the better
# a step: the target, its distance, its cross entropy, the main network's
Step = tuple[Any, float, float, float]


# --- collecting -----------------------------------------------------------------------------------


class Recorder(Hook):
    """Notes every step, and measures all members at the marks."""

    priority = 'VERY_HIGH'

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.steps: list[Step] = []  # architectures as texts
        self.marks: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        pool = runner.model.pool
        self.members = list(pool.scores)  # behind the last step the pool has one
        update = pool.update

        def noted(architecture: Architecture, loss: float) -> None:
            self.target, self.loss = str(architecture), loss
            update(architecture, loss)

        pool.update = noted

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        labels = (float(outputs[name]) for name in ('loss_target_ce', 'loss_ce'))
        self.steps.append((self.target, round(self.loss, 6), *(round(loss, 5) for loss in labels)))
        for mark in MARKS:
            if len(self.steps) == round(mark * runner.max_iters):
                self.marks[f'{mark}'] = {
                    'step': len(self.steps),
                    **measured(self.trial, runner, self.members),
                }

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint['ranking'] = {'steps': self.steps, 'marks': self.marks}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        vars(self).update(checkpoint['ranking'])


@torch.no_grad()
def measured(trial: Trial, runner: Runner, members: Sequence[Architecture]) -> dict[str, Scores]:
    """Of each: the mean distance on the same held-out batches, and the accuracy."""
    stp = runner.model
    was = stp.training
    stp.eval()
    batches = []
    for data, _ in zip(trial.dataset('validation'), range(BATCHES), strict=False):
        batch = stp.data_preprocessor(data, False)
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        batches.append((batch['inputs'], labels, logits_of(stp, batch['inputs'])))
    loss: Scores = {}
    accuracy: Scores = {}
    for architecture in members:
        network = trial.calibrated(stp.export(architecture)).eval()
        distances, right = [], []
        for inputs, labels, main in batches:
            logits = logits_of(network, inputs)
            distances.append(float(normalized_kl(logits, main)))
            right.append(logits.argmax(1) == labels)
        loss[str(architecture)] = round(statistics.fmean(distances), 6)
        accuracy[str(architecture)] = round(100 * float(torch.cat(right).float().mean()), 3)
    stp.train(was)
    return {'loss': loss, 'accuracy': accuracy}


def collect(args: argparse.Namespace) -> None:
    """A file for each seed."""
    for seed in args.seeds:
        path = LOGS / f'{args.data}_{args.network}_{seed}.json'
        if path.exists():
            continue
        setting = Setting(
            'ranking', 'even', args.data, args.network, 0.15, EPOCHS / 40, 'epochs', seed
        )
        trial = Trial(setting, Path(args.work_dir))
        recorder = Recorder(trial)
        stp = search(
            trial, end=1.0, size=1000, interval=NEVER, hooks=[recorder], target_ce=1.0, warmup=0.1
        )
        of = {'data': args.data, 'network': args.network, 'seed': seed}
        write_json(path, {**of, 'steps': recorder.steps, 'marks': recorder.marks})
        print(f'{path}: {len(recorder.steps)} steps, {len(stp.pool)} left', flush=True)


# --- scores ---------------------------------------------------------------------------------------

Steps = list[Step]
Score = Callable[[Steps, list[Architecture]], 'np.ndarray[Any, Any]']


DISTANCE, LABELS = 1, 2  # places in a step


def moving_average(of: int) -> Score:
    """Eq. 8, alpha 0.3."""

    def score(steps: Steps, pool: list[Architecture]) -> Any:
        found: dict[Architecture, float] = {}
        for step in steps:
            found[step[0]] = 0.7 * found.get(step[0], step[of]) + 0.3 * step[of]
        return np.array([found.get(a, np.inf) for a in pool])

    return score


def surrogate(of: int = DISTANCE, **options: float) -> Score:
    """The ridge regression."""

    def score(steps: Steps, pool: list[Architecture]) -> Any:
        model = Surrogate(**options)
        for step in steps:
            model.add(step[0], step[of], step[3])
        return model.predict(pool)

    return score


def rule(of: Callable[[Architecture], float]) -> Score:
    """One that looks at no loss."""
    return lambda steps, pool: np.array([of(a) for a in pool])


SCORES: dict[str, Score] = {
    'moving average of the distance (Eq. 8)': moving_average(DISTANCE),
    'moving average of the cross entropy': moving_average(LABELS),
    'surrogate': surrogate(),
    'surrogate of the cross entropy': surrogate(LABELS),
    'surrogate, stages alone': surrogate(own=1e9),
    'surrogate, no older losses weighed down': surrogate(half_life=1e9),
    'surrogate, each architecture alone': surrogate(ridge=1e9),
    'at random': lambda steps, pool: np.random.default_rng(len(steps)).random(len(pool)),
    'deepest': rule(lambda a: -float(sum(a.depths))),
    'widest': rule(lambda a: -float(sum(a.widths))),
}


def rules_of_the_space(content: Mapping[str, Any], pool: list[Architecture]) -> dict[str, Any]:
    """Scores that look at no loss, and need the space or its costs."""
    of = content['data'], content['network']
    trial = Trial(Setting('ranking', 'even', *of, 0.15, 1.0, 'epochs', 0), Path())
    supernet = trial.supernet(trial.dense())
    return {
        'uniform: unevenness': unevenness(supernet.space, pool),
        'fewest parameters': supernet.cost.params(pool),
    }


def trained_alone(data: str, network: str) -> Scores:
    """Mean accuracies of the members that were trained each by itself."""
    found: dict[str, list[float]] = {}
    for row in read_rows():
        of = setting_of(row)
        if (of.method, of.variant, of.data, of.network, of.budget, of.length, of.compare) == (
            'scratch', 'member', data, network, 0.15, 1.0, 'time',
        ):  # fmt: skip
            found.setdefault(row['architecture'], []).append(row['top1'])
    return {architecture: statistics.fmean(values) for architecture, values in found.items()}


def correlation(scores: Mapping[str, float], truth: Mapping[str, float]) -> float | None:
    """Spearman's, over the architectures that both have; None for fewer than six."""
    both = [a for a in scores if a in truth]
    if len(both) < 6:
        return None
    return float(spearmanr([scores[a] for a in both], [truth[a] for a in both]).statistic)


def correlations(content: dict[str, Any], alone: Scores) -> dict[tuple[str, str, str], float]:
    """By score, mark and what it is held against; positive where the better is ranked better."""
    found = {}
    for mark, at in content['marks'].items():
        pool = list(map(Architecture.parse, at['loss']))
        steps = [(Architecture.parse(a), *losses) for a, *losses in content['steps'][: at['step']]]
        scores = {name: score(steps, pool) for name, score in SCORES.items()}
        scores |= rules_of_the_space(content, pool)
        scores['held-out batches, the same for all'] = np.array([*at['loss'].values()])
        for name, values in scores.items():
            own = dict(zip(map(str, pool), values, strict=True))
            for truth, numbers, sign in (
                ('held-out loss', at['loss'], 1),
                ('accuracy, shared', at['accuracy'], -1),
                ('accuracy, alone', alone, -1),
            ):
                value = correlation(own, numbers)
                if value is not None:
                    found[name, mark, truth] = sign * value
    return found


def report(args: argparse.Namespace) -> None:
    """The table."""
    logs = [json.loads(path.read_text()) for path in sorted(LOGS.glob('*.json'))]
    sections = []
    for (data, network), own in grouped(logs, 'data', 'network').items():
        alone = trained_alone(data, network)
        every = [correlations(log, alone) for log in own]
        columns = sorted({key[1:] for found in every for key in found})
        names = list(dict.fromkeys(name for found in every for name, *_ in found))
        lines = []
        for name in names:
            cells = []
            for column in columns:
                values = [found[(name, *column)] for found in every if (name, *column) in found]
                cells.append(written(*mean_and_error(values)) if values else '')
            lines.append((name, *cells))
        header = ('score', *(f'{float(mark):.0%}: {truth}' for mark, truth in columns))
        sections.append(f'{data}, {network}, {len(own)} seeds, {len(alone)} members trained '
                        f'alone.\n\n{table(header, lines)}')  # fmt: skip
    text = '\n\n'.join(sections)
    print(text)
    if not args.print:
        PAGE.write_text(insert(PAGE.read_text(), 'ranking', text))


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('what', choices=('collect', 'report'))
    add('--data', default='fashion_6k_14')
    add('--network', default='r18_slim')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--work-dir', default=str(ROOT / 'work_dirs/compare'))
    add('--print', action='store_true', help='to the terminal alone')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    {'collect': collect, 'report': report}[args.what](args)


if __name__ == '__main__':
    main()
