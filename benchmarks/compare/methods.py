"""The methods that are compared: STP, and what a user would do otherwise.

Each is a function of a `Trial` that trains within its allowance and returns what it found. A method
of two phases gives each half. Where a rule for the architecture is needed, the preset names it:

- ``random``: drawn by the seed from all that meet the budget;
- ``uniform``: the one whose depths and widths are most alike across the stages;
- ``survivor``: the one that STP's short preset chose with the same seed, length and comparison;
- ``member``: of a shuffled list of those that meet the budget, the same for all seeds, the one at
  the place that the option ``index`` gives.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from setting import IN_ONE_RUN
from torch import Tensor, nn
from training import DRAWN, TOLERANCE, Taught, Trial, WaitingError

from mmstp import STP, Architecture, Budget, Supernet
from mmstp.search.budget import most_uniform
from mmstp.search.budgets import find_budgets
from mmstp.stp.halving import halve, propose
from mmstp.stp.pools import Pools
from mmstp.stp.presets import PRESETS as PRESETS_OF_STP
from mmstp.stp.screening import SCREENED


@dataclass
class Found:
    """What a method ends with.

    Attributes:
        network: The compact network.
        architecture: Its architecture, where it is a subnet.
        more: Further columns of its row.
    """

    network: nn.Module
    architecture: Architecture | None = None
    more: dict[str, Any] = field(default_factory=dict)


Name = tuple[str, str]
Method = Callable[[Trial, str], Found]
METHODS: dict[Name, Method] = {}

OPTIONS = {
    'lr': 1.0,  # the first learning rate, in multiples of the network's
    'tuning': 0.4,  # the same, of a network that was pruned
    'l1': 1e-3,  # the penalty at its end, in multiples of the learning rate
    'l2': 0.03,
    'index': 0,  # of a member
}
AFTER = ('', '-finetuned', '-distilled')  # pruning: nothing, or the other half of the allowance
RULES = ('random', 'uniform', 'survivor', 'member')  # for an architecture
ALONE: dict[str, Any] = dict(target_ce=1.0, warmup=0.05, survivor={})
PRESETS: dict[str, dict[str, Any]] = {
    'paper': dict(end=0.6),
    'short': dict(end=0.3, target_ce=1.0, warmup=0.3),
    # the survivor phase, after a search of that percentage of the time, and what could be else
    'recommended': dict(preset='recommended'),  # as it is
    'long': dict(preset='long', screen=1),  # likewise
    'alone-5': ALONE | dict(end=0.05),
    'alone-15': ALONE | dict(end=0.15),
    'alone-30': ALONE | dict(end=0.3),
    'alone-50': ALONE | dict(end=0.5),
    'alone-15-annealed': ALONE | dict(end=0.15, annealed=True),
    'alone-30-annealed': ALONE | dict(end=0.3, annealed=True),
    'alone-15-no-support': ALONE | dict(end=0.15, beta2=0.0),
    'alone-15-labels': ALONE | dict(end=0.15, beta1=0.0, beta2=0.0),
    'alone-15-taught': ALONE | dict(end=0.15, survivor=dict(teacher='main')),
    # Table 5: components of the paper's preset off, one alone and then one after the other
    'paper-no-expansion': dict(end=0.6, beta2=0.0),
    'paper-no-exploration': dict(end=0.6, size=1),
    'paper-no-depth': dict(end=0.6, space=dict(depths=False)),
    'paper-st-depth': dict(end=0.6, beta2=0.0, size=1),
    'paper-st': dict(end=0.6, beta2=0.0, size=1, space=dict(depths=False)),
    # Fig. 2: stimulative training of one subnet from the start, that of the other sparsifications
    'st-uniform': dict(end=0.6, beta2=0.0, pool='uniform'),
}  # of STP

# Those with the best validation accuracy of what was tried, where they are others: docs/compare.md.
TUNED: dict[Name, dict[str, float]] = {
    ('dense', 'plain'): {'lr': 4.0},
    **{(name, rule): {'lr': 2.0} for name in ('scratch', 'distilled') for rule in RULES},
    **{
        ('stp', name): {'lr': 4.0 if name.startswith(('paper', 'st-')) else 2.0}
        for name in PRESETS
        if name != 'short'
    },
    **{('stp', name): {'lr': 2.0} for name, of in IN_ONE_RUN.items() if of != 'short'},
    # from a trained network: the rate of `magnitude-untaught`, the penalty from random weights
    ('given', 'magnitude-untaught'): {'tuning': 1.0},
    ('given', 'torch-pruning-untaught'): {'tuning': 1.0},
    ('given', 'group-sl'): {'reg': 2.5e-3},
    ('given', 'group-sl-untaught'): {'reg': 2.5e-3, 'tuning': 1.0},
    ('given', 'scratch'): {'lr': 2.0},
    ('magnitude', 'l1-distilled'): {'tuning': 1.0},
    ('magnitude', 'l2-distilled'): {'tuning': 1.0},
    **{('sparsified', f'l1{after}'): {'lr': 4.0, 'l1': 0.1} for after in AFTER},
    **{('sparsified', f'l2{after}'): {'lr': 4.0, 'l2': 1.0} for after in AFTER},
    ('rst-s', 'paper'): {'lr': 4.0, 'l2': 0.03},
    ('group-sl', 'paper'): {'reg': 2.5e-3},
    ('greg', 'paper'): {'growth': 0.1},
    ('fastnas', 'finetuned'): {'tuning': 1.0},
    ('refill', 'imp'): {'lr': 4.0},
    ('sandwich', 'us-nets'): {'lr': 2.0},
}


def option(trial: Trial, name: str, of: Name | None = None) -> float:
    """What the preset says, else the value that was found for it (or for ``of``).

    A network's file may hold ``tuned``, values of its own by ``'method:preset'``, which stand in
    place of all of `TUNED`; a method that is in neither has `OPTIONS`.
    """
    of = of or (trial.setting.method, trial.setting.variant)
    if of == (trial.setting.method, trial.setting.variant) and name in trial.setting.options:
        trial.read.add(name)
        return trial.setting.options[name]
    own = trial.network.get('tuned')  # of another optimizer than that of `TUNED`
    found = TUNED.get(of, {}) if own is None else own.get(':'.join(of), {})
    value: float = found.get(name, OPTIONS[name])
    return value


def method(name: str, *presets: str) -> Callable[[Method], Method]:
    """Registers a method with its presets."""

    def register(function: Method) -> Method:
        for preset in presets:
            METHODS[name, preset] = function
        return function

    return register


# --- architectures --------------------------------------------------------------------------------


def chosen(trial: Trial, supernet: Supernet, rule: str) -> Architecture:
    """The architecture of a rule."""
    if rule == 'survivor':
        wanted = replace(trial.setting, method='stp', preset='short')
        for row in trial.rows:
            if all(row[name] == value for name, value in vars(wanted).items()):
                return Architecture.parse(row['architecture'])
        raise WaitingError(f'{trial.setting.key} needs the row of {wanted.key}')
    members = trial.members(supernet)
    if rule == 'uniform':
        return most_uniform(supernet.space, members)
    if rule == 'member':
        order = np.random.default_rng(0).permutation(len(members))
        place = order[int(option(trial, 'index'))]
    else:
        place = np.random.default_rng(trial.setting.seed).integers(len(members))
    return supernet.space.decode(members[place])


# --- without pruning ------------------------------------------------------------------------------


@method('dense', 'plain')
def dense(trial: Trial, preset: str) -> Found:
    """The dense network."""
    return Found(dense_network(trial))


def dense_network(trial: Trial, share: float = 1.0) -> nn.Module:
    """The dense network after a share of the allowance; trained once for all methods."""
    lr = option(trial, 'lr', ('dense', 'plain'))
    return trial.trained('dense', trial.dense, share, lr, common=True)


def untrained(trial: Trial, architecture: Architecture) -> nn.Module:
    """A compact network with the seed's weights."""
    return trial.supernet(trial.dense()).export(architecture)


@method('scratch', *RULES)
def scratch(trial: Trial, preset: str) -> Found:
    """The compact network trained directly."""
    architecture = chosen(trial, trial.supernet(trial.dense()), preset)
    return Found(
        trial.trained(
            'scratch',
            lambda: untrained(trial, architecture),
            lr=option(trial, 'lr'),
        ),
        architecture,
    )


@method('distilled', *RULES)
def distilled(trial: Trial, preset: str) -> Found:
    """The dense network first, then the compact one from random weights, taught by it."""
    architecture = chosen(trial, trial.supernet(trial.dense()), preset)
    teacher = dense_network(trial, 0.5)
    return Found(
        taught(
            trial,
            lambda: untrained(trial, architecture),
            teacher,
            option(trial, 'lr'),
        ),
        architecture,
    )


def taught(
    trial: Trial,
    build: Callable[[], nn.Module],
    teacher: nn.Module,
    lr: float,
    share: float = 0.5,
) -> Any:
    """A phase with a teacher."""
    network: Any = trial.trained(
        'taught', lambda: Taught(build(), copy.deepcopy(teacher)), share, lr=lr
    )
    return network.network


# --- pruning of a trained network -----------------------------------------------------------------


def after_pruning(trial: Trial, pruned: nn.Module, preset: str, teacher: nn.Module) -> nn.Module:
    """Statistics, fine-tuning or distillation, as the preset says."""
    if preset.endswith('-finetuned'):
        return finetuned(trial, pruned, 0.5)
    if preset.endswith('-distilled'):
        result: nn.Module = taught(
            trial, lambda: copy.deepcopy(pruned), teacher, option(trial, 'tuning')
        )
        return result
    return trial.calibrated(pruned)


def finetuned(trial: Trial, pruned: nn.Module, share: float) -> nn.Module:
    """A pruned network after a share of the allowance."""
    return trial.trained('finetuned', lambda: copy.deepcopy(pruned), share, option(trial, 'tuning'))


def first_share(preset: str) -> float:
    """Of the allowance, what comes before pruning."""
    return 0.5 if '-' in preset else 1.0


@method('magnitude', *(norm + after for norm in ('l1', 'l2') for after in AFTER))
def magnitude(trial: Trial, preset: str) -> Found:
    """The dense network cut to the uniform architecture by the norms of its channels."""
    network = dense_network(trial, first_share(preset))
    teacher = copy.deepcopy(network)
    supernet = trial.supernet(network)
    supernet.order_channels(norm=int(preset[1]))
    architecture = chosen(trial, supernet, 'uniform')
    pruned = supernet.export(architecture)
    return Found(after_pruning(trial, pruned, preset, teacher), architecture)


class Sparsify(Hook):
    """Shrinks the weights outside a subnet by the gradient of a penalty that grows from zero.

    Args:
        kept: Which entries of each parameter belong to the subnet, by name.
        norm: 1 or 2, of the penalty.
        strength: Its weight at the end, in multiples of the learning rate.
    """

    def __init__(self, kept: dict[str, Tensor], norm: int, strength: float) -> None:
        self.kept, self.norm, self.strength = kept, norm, strength

    @torch.no_grad()
    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        rate = runner.optim_wrapper.get_lr()['lr'][0] * self.strength
        rate *= (runner.iter + 1) / runner.max_iters
        for name, parameter in runner.model.named_parameters():
            slope = parameter.sign() if self.norm == 1 else parameter
            parameter -= rate * slope.masked_fill(self.kept[name], 0)


@method('sparsified', *(norm + after for norm in ('l1', 'l2') for after in AFTER))
def sparsified(trial: Trial, preset: str) -> Found:
    """The dense network with a growing penalty on what lies outside the uniform architecture.

    The sparsification that the paper's Fig. 2 compares with (its Eq. 2).
    """
    return penalised(trial, preset, 'uniform', int(preset[1]))


@method('rst-s', 'paper')
def rst_s(trial: Trial, preset: str) -> Found:
    """Random sparse network transformation, structured: a random subnet, L2 on the rest, tuning.

    Bai et al., *Dual Lottery Ticket Hypothesis*, ICLR 2022; whole channels, as the paper has it.
    """
    return penalised(trial, 'l2-finetuned', 'random', 2)


def penalised(trial: Trial, preset: str, rule: str, norm: int) -> Found:
    """The common part of the two."""
    supernet = trial.supernet(trial.dense())
    architecture = chosen(trial, supernet, rule)
    hook = Sparsify(supernet.kept(architecture), norm, option(trial, f'l{norm}'))
    share, lr = first_share(preset), option(trial, 'lr')
    network = trial.trained('sparsified', trial.dense, share, lr, [hook])
    teacher = copy.deepcopy(network)
    pruned = trial.supernet(network).export(architecture)
    return Found(
        after_pruning(trial, pruned, preset, teacher),
        architecture,
        {'main_top1': trial.top1(teacher)},
    )


# --- STP ------------------------------------------------------------------------------------------

VISITS = 10  # of each architecture of the pool before one is left
LAST = 10  # of the pool, as in the paper's Table 7


@method('stp', *PRESETS)
def stp(trial: Trial, preset: str) -> Found:
    """Stimulative-training pruning."""
    history = PoolHistory()
    model = search(trial, **PRESETS[preset], hooks=[history])
    found = survivor_of(trial, model, history)
    if preset == 'paper':
        found.more['last'] = last_of(trial, model, history)
    return found


BUDGETS = (0.15, 0.35, 0.55)
TOGETHER = 1.3  # of the allowance of one run, for all of them


@method('stp', *IN_ONE_RUN)
def stp_budgets(trial: Trial, preset: str) -> Found:
    """One run for all of `BUDGETS`, with another preset; the row is of one of them.

    The rows of all have the time of the whole run.
    """
    if trial.setting.budget not in BUDGETS:
        raise ValueError(f'stp:{preset} is for the budgets {BUDGETS}, not {trial.setting.budget}')
    options = PRESETS[IN_ONE_RUN[preset]]
    model = of_budget(trial, preset, BUDGETS[0], target=list(BUDGETS), share=TOGETHER, **options)
    (label,) = find_budgets(model.pools.budgets, f'{trial.setting.budget}')
    return survivor_of(trial, model, label=label)


@method('stp', 'afterwards')
def stp_afterwards(trial: Trial, preset: str) -> Found:
    """What ``tools/search.py`` finds in the main network of ``short`` for the middle budget.

    Its time is that of the main network; what the search takes is a column.
    """
    history = PoolHistory()  # the row of ``short`` itself may read this run
    model = of_budget(trial, 'short', BUDGETS[1], **PRESETS['short'], hooks=[history])
    start = time.process_time()
    space, cost = model.supernet.space, model.supernet.cost
    budget = Budget.of(trial.setting.budget, 'macs', TOLERANCE, space, cost)
    images = trial.training_images()
    propose(model, budget, images, DRAWN, 32, 256)
    best = halve(model, list(model.pool.scores), images, images, 256)[0].architecture
    found = {'searched_seconds': round(time.process_time() - start, 1)}
    return Found(trial.calibrated(model.export(best)), best, found)


def of_budget(trial: Trial, preset: str, budget: float, /, **options: Any) -> STP:
    """A run of STP that rows of several budgets read: it lies with those of one of them."""
    preset += ''.join(trial.setting.preset.partition('@')[1:])
    own = replace(trial, setting=replace(trial.setting, preset=preset, budget=budget))
    model = search(own, **options)
    trial.seconds, trial.steps, trial.epochs = own.seconds, own.steps, own.epochs
    return model


AFTER_DENSE = {
    f'{kind}-{percent}': (percent / 100, options)
    for kind, options in {
        'after': dict(preset='recommended'),
        'screened': dict(preset='pretrained', screen=1),
        'screened-taught': dict(preset='pretrained', screen=1, survivor=dict(teacher='main')),
    }.items()
    for percent in (30, 50, 70)
}  # the share of the allowance that the dense network has before, and how it goes on


@method('stp', *AFTER_DENSE)
def stp_after_dense(trial: Trial, preset: str) -> Found:
    """A preset from a dense network that was trained before, on this account."""
    (share, options), history = AFTER_DENSE[preset], PoolHistory()
    network = dense_network(trial, share)
    model = search(
        trial,
        **options,
        share=1 - share,
        hooks=[history],
        start=lambda: copy.deepcopy(network),
    )
    return survivor_of(trial, model, history)


def last_of(trial: Trial, model: STP, history: PoolHistory) -> dict[str, float]:
    """What was in the pool before it shrank below `LAST`, with the accuracies under the weights."""
    pool = next(reversed([pool for pool in history.entries.values() if len(pool) >= LAST]), [])
    return {
        text: trial.top1(trial.calibrated(model.supernet.export(Architecture.parse(text))))
        for text in pool
    }


def search(
    trial: Trial,
    end: float | None = None,
    share: float = 1.0,
    size: int | None = None,
    pool: str | Sequence[str] | None = None,
    space: dict[str, Any] | None = None,
    interval: int | None = None,
    hooks: Sequence[Hook] = (),
    annealed: bool = False,
    screen: int = 0,
    start: Callable[[], nn.Module] | None = None,
    target: float | Sequence[float] | None = None,
    **options: Any,
) -> STP:
    """A run of STP.

    Args:
        trial: Where it belongs.
        end: The part of it after which a single architecture is left: of its time, where the
            survivor is then trained alone, else of its epochs; the preset's by default, with its
            size of the pool.
        share: Of the allowance.
        size: Of the pool; by default, such that each is visited `VISITS` times.
        pool: Its architectures, or the rule for its only one (`RULES`); drawn by default.
        space: Options of the space, beside the network's.
        interval: Iterations between two drops; an epoch by default.
        hooks: Further ones.
        annealed: Whether the learning rate falls to 0 within the search.
        screen: Batches on which candidates are screened.
        start: Makes the main network; with the seed's weights by default. The channels of another
            are ordered by importance.
        target: The budgets, if not that of the trial.
        options: Of `STP`.
    """
    target = trial.setting.budget if target is None else target

    def build(size: int = 1) -> STP:
        stp = STP(
            (start or trial.dense)(),
            target=target,
            tolerance=TOLERANCE,
            input_shape=trial.data.input_shape,
            space={**trial.network.space, **(space or {})},
            pool=dict(size=size, seed=trial.setting.seed),
            **options,
        ).to(trial.device)
        if start is not None:
            stp.supernet.order_channels()
        if pool is not None:
            fill(trial, stp, pool)
        return stp

    begin, part = (0.0, end) if end is not None else span_of(options['preset'])
    parts: dict[str, tuple[float, Callable[[], nn.Module]]] = {
        'main': (begin, lambda: before_search(build())),
        'search': (part - begin, build),
        'survivor': (1 - part, lambda: alone(build())),
    }
    if end is not None and options.get('survivor') is None:
        parts = {'search': (1.0, build)}
    parts = {name: own for name, own in parts.items() if own[0]}
    of = 'epochs' if end is None else 'time'
    epochs = trial.plan('stp', parts, share, of=of, screened=screen * SCREENED)
    if end is None:
        size = DRAWN
    else:
        if 'survivor' in epochs:
            end = epochs['search'] / sum(epochs.values())
        iterations = sum(epochs.values()) * trial.steps_per_epoch() * end
        visits = VISITS * (len(target) if isinstance(target, Sequence) else 1)
        size = size or max(8, min(DRAWN, int(iterations / visits)))
    shrinking = dict(type='mmstp.PoolHook', end=end, interval=interval, screen=screen)
    model: Any = trial.trained(
        'stp',
        lambda: build(size),
        share,
        option(trial, 'lr'),
        [shrinking, *hooks],
        course=epochs['search'] if annealed else None,
    )
    return model


def fill(trial: Trial, stp: STP, pool: str | Sequence[str]) -> None:
    """Puts named architectures into the pool, or the one of a rule."""
    own = [chosen(trial, stp.supernet, pool)] if isinstance(pool, str) else pool
    space = stp.supernet.space
    rows = np.stack([space.encode(space.check(one)) for one in own])
    stp.pools = Pools.drawn(
        space, stp.pools.budgets, {stp.pools.only: rows}, len(rows), trial.setting.seed
    )


def span_of(preset: str) -> tuple[float, float]:
    """The parts of the iterations before the search, and until it ends."""
    return PRESETS_OF_STP[preset].begin, PRESETS_OF_STP[preset].end


def before_search(stp: STP) -> STP:
    """As it is while the main network is trained alone."""
    stp.searching = False
    return stp


def alone(stp: STP) -> STP:
    """As it is in the survivor phase, to measure what a step costs then."""
    stp.go_alone()
    return stp


def survivor_of(
    trial: Trial, stp: STP, history: PoolHistory | None = None, label: str | None = None
) -> Found:
    """The best architecture of a run, of several budgets that of one, cut out."""
    architecture = stp.pools[label or stp.pools.only].best
    network = stp.export(architecture)
    more = {} if history is None else {'pool_size': len(history.entries[0])}
    if not stp.alone:
        more['main_top1'] = trial.top1(stp)
        network = trial.calibrated(network)
    return Found(network, architecture, more)


class PoolHistory(Hook):
    """Which architectures were in the pool, from which iteration on."""

    def __init__(self) -> None:
        self.entries: dict[int, list[str]] = {}

    def before_train(self, runner: Runner) -> None:
        self._note(runner, runner.iter)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._note(runner, runner.iter + 1)

    def _note(self, runner: Runner, iteration: int) -> None:
        pool = runner.model.pool
        if not self.entries or len(pool) < len(self.entries[max(self.entries)]):
            self.entries[iteration] = [str(architecture) for architecture in pool.scores]

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint['pool_history'] = self.entries

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.entries = checkpoint['pool_history']
